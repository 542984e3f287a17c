"""The settings file of the exec launcher: a team's own commands, checked whole before a job ever runs.

=============  =================================================================================  =====================
table          what its command does                                                              what is read from it
=============  =================================================================================  =====================
``[find]``     lists living jobs of the name ``{{job_name}}``; prints nothing where there is none  ``handle``
``[submit]``   hands the rendered template, ``{{script}}``, to the scheduler                       ``handle``
``[poll]``     tells of one job, ``{{handle}}``                                                    ``state``, see below
``[cancel]``   has SIGTERM sent to the engine, which then saves and stops                          -
``[kill]``     ends the job, waiting or running                                                    -
``[logs]``     what the scheduler itself has of the job's output; may be left out                  all of it
``[nodes]``    lists the machines                                                                  ``name``, see below
=============  =================================================================================  =====================

What is read is a regular expression's named groups. ``poll.pattern``: ``state`` (a word that ``[poll.states]`` sorts),
``exit_code``, ``signal``, ``message``. ``nodes.pattern``, found once a machine:
``name``, ``cpus``, ``gpus``, ``gpu_name``, ``memory``, ``free_memory``, ``state``, ``version``. Commands are lists of
arguments, run in the file's folder and without a shell; placeholders are those of
:mod:`app.jobs.launchers.exec_template`.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.jobs.launchers.base import DeviceKind
from app.jobs.launchers.exec_template import check_placeholders, read_template
from fitting.errors import InputError

# What a placeholder may stand for, beside the file's own [values].
OF_FIND = ("job_id", "job_name", "attempt")
OF_WORK = (
    *OF_FIND, "run_dir", "exec_dir", "log_file", "python", "package_root", "module", "device", "num_processes", "num_nodes",
    "processes_per_node", "gpus_per_node", "cpus_per_node",
)  # fmt: skip
OF_SUBMIT = (*OF_WORK, "script")
OF_HANDLE = ("handle", "job_id", "job_name", "run_dir", "exec_dir", "log_file")
KNOWN = {
    "find": OF_FIND,
    "submit": OF_SUBMIT,
    "poll": OF_HANDLE,
    "cancel": OF_HANDLE,
    "kill": OF_HANDLE,
    "logs": OF_HANDLE,
}

StateKind = Literal["waiting", "running", "ended", "killed", "out_of_memory", "lost"]
Word = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


def _pattern(*groups: str) -> AfterValidator:
    """A regular expression that has these named groups."""

    def check(text: str) -> str:
        try:
            found = re.compile(text, re.MULTILINE).groupindex
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        for group in groups:
            if group not in found:
                raise ValueError(f"has no group {group!r}: write (?P<{group}>...) where it stands")
        return text

    return AfterValidator(check)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Command(_Table):
    """A list of arguments, and how long it may take."""

    command: Annotated[list[Word], Field(min_length=1, max_length=100)]
    timeout_seconds: float = Field(default=30, gt=0, le=300)


class Find(Command):
    handle: Annotated[Word, _pattern("handle")]


class Submit(Command):
    """``away``: a failed submission that says this is tried again; any other is the job's end."""

    handle: Annotated[Word, _pattern("handle")]
    away: Annotated[Word, _pattern()]


class Poll(Command):
    """``unknown``: what it says of a job that the scheduler does not know, or no longer."""

    pattern: Annotated[Word, _pattern("state")]
    unknown: Annotated[Word, _pattern()]
    every_seconds: float = Field(default=15, ge=1, le=3_600)
    states: dict[StateKind, list[Word]]

    @property
    def kinds(self) -> dict[str, StateKind]:
        return {word: kind for kind, words in self.states.items() for word in words}


class Nodes(Command):
    """``unusable``: a state in which a machine takes no work for now. ``memory_unit_bytes``: of both memory groups."""

    pattern: Annotated[Word, _pattern("name")]
    unusable: Annotated[Word, _pattern()] | None = None
    memory_unit_bytes: int = Field(default=2**20, ge=1, le=2**40)
    every_seconds: float = Field(default=60, ge=1, le=3_600)


class DeviceShare(_Table):
    """CPUs that one process of a job gets: beside its GPU, or as its CPU slot."""

    cpus_per_process: int = Field(default=1, ge=1, le=1_024)


class ExecSettings(_Table):
    """A checked settings file; ``folder`` and ``template_text`` are added as it is read."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$")]
    template: Word
    max_jobs: int = Field(default=100, ge=1, le=100_000, description="that the scheduler is given at once")
    values: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")], str | int | float] = {}
    cpu: DeviceShare = DeviceShare()
    gpu: DeviceShare = DeviceShare()
    find: Find
    submit: Submit
    poll: Poll
    cancel: Command
    kill: Command
    logs: Command | None = None
    nodes: Nodes
    folder: Path = Field(exclude=True)
    template_text: str = Field(exclude=True)

    def share(self, device: DeviceKind) -> DeviceShare:
        return self.gpu if device == "gpu" else self.cpu

    @property
    def commands(self) -> dict[str, Command]:
        found: dict[str, Command | None] = {
            "find": self.find, "submit": self.submit, "poll": self.poll, "cancel": self.cancel, "kill": self.kill,
            "logs": self.logs, "nodes": self.nodes,
        }  # fmt: skip
        return {name: command for name, command in found.items() if command is not None}


def read_exec_settings(path: Path) -> ExecSettings:
    """Read a settings file and its template.

    Raises:
        InputError: names the setting that is wrong, and the mend.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("exec_file", f"{str(path)!r} cannot be read ({error.strerror})", "name another file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("exec_file", f"{str(path)!r} is no TOML ({error})", "correct it") from None
    folder = path.absolute().parent
    for name in ("folder", "template_text"):
        if name in values:
            raise InputError(name, "is no setting", f"take it out of {path}")
    template = values.get("template")
    text = read_template(folder, template) if isinstance(template, str) and template else ""
    try:
        settings = ExecSettings(**values, folder=folder, template_text=text)
    except ValidationError as error:
        raise _first_error(error, path) from None
    _check_whole(settings, path)
    return settings


def _first_error(error: ValidationError, path: Path) -> InputError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        return InputError(
            field, "is missing", f"add it to {path}; `growthlaw workers template` writes one that is whole"
        )
    if first["type"] == "extra_forbidden":
        return InputError(field, "is no setting", f"take it out of {path}, or see that its name is spelled right")
    said = str(first.get("ctx", {}).get("error", first["msg"]))
    return InputError(field, f"is {str(first['input'])[:200]!r}: {said}", f"correct it in {path}")


def _check_whole(settings: ExecSettings, path: Path) -> None:
    """What no table shows alone: placeholders, programs, and that a state is sorted once."""
    for name in settings.values:
        if name in (*OF_SUBMIT, *OF_HANDLE):
            raise InputError(f"values.{name}", "is the name of a placeholder of its own", f"rename it in {path}")
    for name, value in settings.values.items():
        if not str(value).isprintable():
            raise InputError(f"values.{name}", f"is {value!r}, but values are printable", f"correct it in {path}")
    for table, command in settings.commands.items():
        for argument in command.command:
            check_placeholders(argument, (*KNOWN.get(table, ()), *settings.values), f"{table}.command")
        _check_program(command.command[0], settings.folder, f"{table}.command")
    check_placeholders(settings.template_text, (*OF_WORK, *settings.values), f"template {settings.template!r}")
    _check_states(settings.poll.states, path)


def _check_program(program: str, folder: Path, field: str) -> None:
    found = shutil.which(str(folder / program)) if "/" in program else shutil.which(program)
    if found is None:
        raise InputError(field, f"starts {program!r}, which is not found here", "install it, or give its whole path")


def _check_states(states: Mapping[StateKind, list[str]], path: Path) -> None:
    for kind in ("running", "ended"):
        if not states.get(kind):
            raise InputError("poll.states", f"names no state that means {kind}", f"add one to {path}")
    seen: dict[str, str] = {}
    for kind, words in states.items():
        for word in words:
            if word in seen:
                raise InputError("poll.states", f"has {word!r} as {seen[word]} and as {kind}", f"keep one in {path}")
            seen[word] = kind
