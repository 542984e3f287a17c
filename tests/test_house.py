"""The house's own rules: who may import whom, lint, types, and what the service process loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "app", "fitting", "tests", "data"), ("mypy",), ("lint-imports", "--no-cache")],
    ids=lambda command: command[0],
)
def test_tool_finds_nothing(command: tuple[str, ...]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    found = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_service_process_loads_no_torch() -> None:
    code = (
        "import app.main, app.jobs.supervisor, app.guidelines.refitter, app.guidelines.__main__, app.corpus.__main__, sys;"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'matplotlib', 'ray')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert loaded.stdout.strip() == "[]"
