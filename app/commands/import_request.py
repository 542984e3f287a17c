"""An import as it is sent to the service, from what a user gave: the options, the files, and what is to be said beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from app.commands import import_sources
from app.commands.wandb_sources import SCHEME, place_of

Files = list[tuple[str, bytes]]


@dataclass(kw_only=True)
class Request:
    """One call of `POST /runs/import`; ``mapping`` is what the next run of the project will need again."""

    options: dict[str, Any]
    mapping: dict[str, Any]
    files: Files = field(default_factory=list)
    base: Files = field(default_factory=list)
    grown: Files = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def request_of(
    given: Mapping[str, Any], plain: Iterable[str], saved: Mapping[str, Any], on_progress: Callable[[str], None]
) -> Request:
    """The request of an import; W&B is asked where a source is its.

    Args:
        given: the command's options by name.
        plain: those that go into the service's options as they are.
        saved: a saved mapping; what was given goes before.

    Raises:
        InputError, click.UsageError: a source or an option cannot be used.
    """
    places = {"files": given["sources"], "base": given["base_sources"], "grown": given["grown_sources"]}
    everywhere = [source for part in places.values() for source in part]
    options = import_sources.options_of(given, plain, saved)
    table = options.pop("wandb", {})
    from_wandb = [source for source in everywhere if isinstance(source, str)]
    of_project = [name for name in _OF_A_PROJECT if given[name]]
    if of_project and not (len(from_wandb) == len(everywhere) == 1 and place_of(from_wandb[0])[2] is None):
        raise click.UsageError(f"--{_OF_A_PROJECT[of_project[0]]} goes with {SCHEME}ENTITY/PROJECT alone")
    if from_wandb:
        return _with_wandb(given, places, options, table, on_progress)
    request = Request(options=options, mapping=_mapping(options))
    for part, sources in places.items():
        setattr(request, part, [file for source in sources for file in import_sources.files_of(source)])
    options.setdefault("name", import_sources.name_of(next(iter(places["files"] or places["grown"] or places["base"]))))
    _check_cohort(options)
    return request


# Options of a W&B project, by the names they are given under.
_OF_A_PROJECT = {
    "filters": "filter", "run_patterns": "run", "states": "state", "join": "join", "from_config": "from-config",
    "skip_bad": "skip-bad",
}  # fmt: skip


def _with_wandb(
    given: Mapping[str, Any],
    places: Mapping[str, tuple[Path | str, ...]],
    options: dict[str, Any],
    saved_table: Mapping[str, Any],
    on_progress: Callable[[str], None],
) -> Request:
    from app.commands import wandb_import
    from app.wandb_api import WandbApi

    _check_cohort(options)
    table = wandb_import.wandb_table(given, saved_table)
    request = Request(options=options, mapping=_mapping(options) | ({"wandb": table} if table else {}))
    with WandbApi(given["wandb_url"]) as api:
        fetched = wandb_import.Fetched(api=api, on_progress=on_progress)
        everywhere = [source for part in places.values() for source in part]
        if len(everywhere) == 1 and isinstance(everywhere[0], str) and place_of(everywhere[0])[2] is None:
            request.options = wandb_import.project_request(fetched, everywhere[0], table, options)
            if given["skip_bad"]:
                request.options["skip_bad"] = True
            request.files = list(fetched.files.values())
        else:
            for part in ("base", "grown", "files"):
                files: Files = []
                for source in places[part]:
                    if isinstance(source, Path):
                        files += import_sources.files_of(source)
                        continue
                    run, file = wandb_import.run_files(fetched, source, options)
                    files.append(file)
                    name = run.name
                if places[part] and part != "base":
                    last = places[part][-1]
                    options.setdefault("name", import_sources.name_of(last) if isinstance(last, Path) else name[:64])
                setattr(request, part, files)
        if given["save_logs"] is not None:
            wandb_import.save_logs(given["save_logs"], list(fetched.files.values()))
        request.notes = fetched.notes
    return request


def _mapping(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is one run's alone."""
    return {name: value for name, value in options.items() if name not in ("name", "replace")}


def _check_cohort(options: Mapping[str, Any]) -> None:
    if "cohort" not in options:
        raise click.UsageError("--cohort is missing: name the runs whose losses this one's may be compared with")
