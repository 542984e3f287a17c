"""Settings of the exec launcher for the scheduler of :mod:`simple_scheduler`, whole or with one of them wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from app.jobs.launchers.base import Work
from app.store.ids import new_id

SCHEDULER = Path(__file__).with_name("simple_scheduler.py")
TEMPLATE = """\
#!/bin/bash
export RUN_DIR={{run_dir|shell}} PYTHONPATH={{package_root|shell}}
echo a > "$RUN_DIR/exec/$SIMPLE_ID.nodes"
{{python|shell}} -m {{module}} "$RUN_DIR" >> {{log_file|shell}} 2>&1 &
trap 'kill -TERM $!' TERM
wait $!
code=$?
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
echo "$code" > "$RUN_DIR/exec/$SIMPLE_ID.exit"
"""


def simple_settings(state: Path, **changes: Any) -> dict[str, Any]:
    """Settings for the simple scheduler; `table__key=value` changes one, None takes it out."""

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-IS", str(SCHEDULER), str(state), *arguments]

    values: dict[str, Any] = {
        "name": "Simple",
        "template": "job.sh",
        "find": {"command": command("find", "{{job_name}}"), "handle": r"^job (?P<handle>\d+)$"},
        "submit": {
            "command": command("submit", "{{script}}", "{{job_name}}"), "handle": r"^job (?P<handle>\d+)$",
            "away": "cannot reach",
        },
        "poll": {
            "command": command("poll", "{{handle}}"), "unknown": "no such job", "every_seconds": 1,
            "pattern": r"^state=(?P<state>\w+)( (?P<exit_code>\w+)(:(?P<signal>\w+))?)?",
            "states": {"waiting": ["W"], "running": ["R"], "ended": ["E"], "killed": ["K"], "out_of_memory": ["M"]},
        },
        "cancel": {"command": command("signal_job", "{{handle}}", "15")},
        "kill": {"command": command("signal_job", "{{handle}}", "9")},
        "nodes": {
            "command": command("nodes"), "unusable": "down",
            "pattern": r"^(?P<name>\w+) (?P<cpus>\d+) (?P<gpus>\d+) (?P<state>\w+)$",
        },
    }  # fmt: skip
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        if value is None:
            del table[key]
        else:
            table[key] = value
    return values


def write_settings(folder: Path, values: dict[str, Any], template: str = TEMPLATE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "job.sh").write_text(template)
    path = folder / "exec.toml"
    path.write_text(_toml(values))
    return path


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = [
        f"\n[{prefix}{key}]\n{_toml(value, f'{prefix}{key}.')}"
        for key, value in values.items()
        if isinstance(value, dict)
    ]
    return "\n".join(plain) + "\n" + "".join(tables)


def work(runs_dir: Path, **changes: Any) -> Work:
    """Work in a run directory of its own, empty."""
    run_dir = runs_dir / new_id("run")
    run_dir.mkdir(parents=True)
    return Work(**({"job_id": new_id("job"), "kind": "growth", "run_dir": run_dir, "device": "cpu"} | changes))
