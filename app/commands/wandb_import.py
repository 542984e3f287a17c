"""What an import of W&B runs sends to the service: options a run, and the histories as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.wandb_sources import (
    CONFIG_FIELDS,
    JOINS,
    STATES,
    Selection,
    filters_of,
    history_file,
    num_missing,
    options_of_run,
    place_of,
    select,
)
from fitting.errors import InputError

if TYPE_CHECKING:
    from app.wandb_api import WandbApi, WandbRun

OnProgress = Callable[[str], None]
# Of a saved mapping, beside the service's own options.
TABLE = "wandb"
_TABLE_FIELDS = ("filters", "runs", "states", "join", "from_config")


@dataclass(kw_only=True)
class Fetched:
    """Histories that were fetched, each once, and what is to be said about them."""

    api: WandbApi
    on_progress: OnProgress
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, run: WandbRun, options: Mapping[str, Any]) -> str:
        """The name of the file that holds a run's history."""
        if run.id not in self.files:
            file = history_file(self.api, run, options, lambda rows: self.on_progress(f"{run.name}: {rows:,} rows"))
            self.files[run.id] = file
            if missing := num_missing(run, file[1]):
                self.notes.append(f"{run.name}: W&B counts {missing:,} rows more than its history gave")
        return self.files[run.id][0]


def wandb_table(given: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Which runs and what of their configurations, as a mapping saves it: what was given goes before what was saved.

    Raises:
        InputError: a field is unknown or holds what is none of its values.
    """
    table = {name: value for name, value in saved.items() if value}
    if unknown := sorted(table.keys() - set(_TABLE_FIELDS)):
        raise InputError(f"{TABLE}.{unknown[0]}", "is not known", f"use {', '.join(_TABLE_FIELDS)}")
    if given["filters"]:
        table["filters"] = filters_of(given["filters"])
    if given["run_patterns"]:
        table["runs"] = list(given["run_patterns"])
    if given["states"]:
        table["states"] = list(given["states"])
    if given["join"]:
        table["join"] = given["join"]
    for text in given["from_config"]:
        name, equals, key = text.partition("=")
        if not equals or not key:
            raise InputError("from_config", f"{text!r} is none", "write FIELD=KEY, as peak_lr=optimizer.lr")
        table["from_config"] = {**table.get("from_config", {}), name: key}
    for name in table.get("from_config", {}):
        if name not in CONFIG_FIELDS:
            raise InputError("from_config", f"names {name!r}", f"use one of {', '.join(CONFIG_FIELDS)}")
    if table.get("join") not in (None, *JOINS):
        raise InputError("join", f"is {table['join']!r}", f"use one of {', '.join(JOINS)}")
    for state in table.get("states", ()):
        if state not in STATES:
            raise InputError("state", f"is {state!r}", f"use one of {', '.join(STATES)}")
    return table


def project_request(
    fetched: Fetched, source: str, table: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an import of a project's runs; their histories are in ``fetched`` afterwards.

    Raises:
        InputError: nothing is asked for, a configuration does not fit, or the server refuses.
    """
    entity, project, _ = place_of(source)
    chosen = Selection(
        filters=table.get("filters", {}), runs=table.get("runs", ()), states=table.get("states", ()),
        join=table.get("join"), from_config=table.get("from_config", {}),
    )  # fmt: skip
    groups, num_going_on = select(fetched.api, entity, project, chosen)
    if num_going_on:
        fetched.notes.append(f"{num_going_on} runs still go on and are left out; --state running brings them in")
    asked = [(runs, options_of_run(runs, common, chosen.from_config)) for runs in groups]
    _check_names(asked, chosen.join)
    listed = []
    for place, (runs, options) in enumerate(asked):
        fetched.on_progress(f"run {place + 1} of {len(asked)}")
        base = options.pop("base", None)
        parts = {"files": [fetched.add(run, options) for run in runs]}
        if base is not None:
            base_runs = _base_runs(fetched.api, entity, project, base, groups)
            parts = {"base": [fetched.add(run, options) for run in base_runs], "grown": parts["files"]}
        listed.append(options | parts)
    return {"runs": listed}


def run_files(fetched: Fetched, source: str, options: Mapping[str, Any]) -> tuple[WandbRun, tuple[str, bytes]]:
    """One W&B run that was named by itself, with its file.

    Raises:
        InputError: it is a whole project, or there is no such run.
    """
    entity, project, run_id = place_of(source)
    if run_id is None:
        raise InputError("SOURCE", f"{source!r} is a whole project", "give it alone, or name a run of it")
    run = fetched.api.run(entity, project, run_id)
    fetched.add(run, options)
    return run, fetched.files[run.id]


def save_logs(folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Keep fetched histories; `growthlaw runs import FILE` reads them again without W&B."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files:
        (folder / name).write_bytes(content)


def _check_names(asked: Sequence[tuple[Sequence[WandbRun], Mapping[str, Any]]], join: str | None) -> None:
    seen: dict[str, str] = {}
    for runs, options in asked:
        name, path = options["name"], runs[-1].path
        if name in seen:
            mend = "" if join == "name" else "--join name where this is one run that was started again, "
            raise InputError(
                "name",
                f"{name!r} is that of {seen[name]} and of {path}",
                f"say {mend}--from-config name=KEY, or --run ID",
            )
        seen[name] = path


def _base_runs(
    api: WandbApi, entity: str, project: str, base: str, groups: Sequence[Sequence[WandbRun]]
) -> Sequence[WandbRun]:
    """The W&B runs of a base, by id or name; a base that was asked for itself is the same runs."""
    for runs in groups:
        if any(base in (run.id, run.name) for run in runs):
            return runs
    found = sorted(
        api.runs(entity, project, {"$or": [{"name": base}, {"displayName": base}]}), key=lambda run: run.created_at
    )
    if len(found) != 1:
        raise InputError(
            "base", f"is {base!r}, which {len(found)} runs of {entity}/{project} are called", "log the base's run id"
        )
    return found
