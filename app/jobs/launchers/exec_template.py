"""Placeholders in commands and templates: ``{{name}}``, ``{{name|shell}}``, ``{{name|json}}``.

=================  ==================================  =========================================================
placeholder        the value is put in                 what is refused
=================  ==================================  =========================================================
``{{x}}``          as it is                            all but letters, digits and ``_ . : / @ = , + -``
``{{x|shell}}``    as one quoted word of a shell       characters that cannot be printed, line ends among them
``{{x|json}}``     as a JSON string, which YAML reads  the same
=================  ==================================  =========================================================

So no value ends the place that it was given: a template says where a shell or a YAML parser reads it, and what would
need quotes where there are none is an error.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from fitting.errors import InputError

PLACEHOLDER = re.compile(r"\{\{ *([a-z][a-z0-9_]*) *(?:\| *(shell|json) *)?\}\}")
PLAIN = re.compile(r"[A-Za-z0-9_.:/@=,+-]*")
LARGEST_TEMPLATE_BYTES = 256_000
SHIPPED_DIR = Path(__file__).parent / "templates"
# scheduler -> its settings file and its template
SHIPPED = {"slurm": ("slurm.toml", "slurm.sh"), "kubernetes": ("kubernetes.toml", "jobset.yaml")}

Value = str | int | float


def check_placeholders(text: str, known: Collection[str], where: str) -> None:
    """That every ``{{`` begins a placeholder, and one of ``known``.

    Raises:
        InputError: names the first that is not.
    """
    for name, _ in PLACEHOLDER.findall(text):
        if name not in known:
            raise InputError(
                where,
                f"has the placeholder {{{{{name}}}}}, which means nothing here",
                f"use of {', '.join(sorted(known))}",
            )
    rest = PLACEHOLDER.sub("", text)
    if "{{" in rest:
        odd = rest[rest.index("{{") :].splitlines()[0][:40]
        raise InputError(
            where,
            f"has {odd!r}, but two braces begin a placeholder in small letters",
            "write {{name}}, {{name|shell}} or {{name|json}}",
        )


def fill(text: str, values: Mapping[str, Value], where: str) -> str:
    """The text with its placeholders, which :func:`check_placeholders` knows, replaced.

    >>> fill("cd {{run_dir|shell}}", {"run_dir": "/my runs/a"}, "script")
    "cd '/my runs/a'"

    Raises:
        InputError: a value does not fit where it is to go.
    """

    def put(match: re.Match[str]) -> str:
        name, quoting = match.groups()
        value = str(values[name])
        if not value.isprintable():
            raise InputError(name, f"is {value!r}, but {where} takes printable characters", "give it without them")
        if quoting == "shell":
            return shlex.quote(value)
        if quoting == "json":
            return json.dumps(value, ensure_ascii=False)
        if PLAIN.fullmatch(value) is None:
            raise InputError(
                name,
                f"is {value!r}, but {where} takes it without quotes: letters, digits and _ . : / @ = , + - alone",
                f"choose such a value, or write {{{{{name}|shell}}}} or {{{{{name}|json}}}} where it is read as such",
            )
        return value

    return PLACEHOLDER.sub(put, text)


def fill_command(arguments: Sequence[str], values: Mapping[str, Value], where: str) -> list[str]:
    """A command as a list of arguments; a value never becomes an option or a second argument.

    Raises:
        InputError: a value does not fit.
    """
    filled = []
    for argument in arguments:
        text = fill(argument, values, where)
        if text.startswith("-") and not argument.startswith("-"):
            raise InputError(where, f"would get {text!r}, which its program reads as an option", "choose another value")
        filled.append(text)
    return filled


def read_template(folder: Path, name: str) -> str:
    """The template ``name`` in ``folder``, the settings file's own.

    Raises:
        InputError: it lies elsewhere, is missing, too large, or no text.
    """
    field, mend = "template", f"keep it beside the settings file, in {str(folder)!r}"
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(field, f"is {name!r}, which leaves the folder of the settings file", mend)
    # A link may point about inside the folder (mounted settings are such), but not out of it.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(field, f"is {name!r}, a link that leaves the folder of the settings file", mend)
    if not path.is_file():
        raise InputError(field, f"is {name!r}, but there is no such file", mend)
    if path.stat().st_size > LARGEST_TEMPLATE_BYTES:
        raise InputError(field, f"{name!r} is larger than {LARGEST_TEMPLATE_BYTES:,} bytes", "shorten it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(field, f"{name!r} is no UTF-8 text", "write it as such") from None


def write_shipped(scheduler: str, folder: Path) -> list[Path]:
    """Copy the settings file and the template for a scheduler of :data:`SHIPPED` into ``folder``, for a team to edit.

    Raises:
        InputError: one of them is there already; nothing is written.
    """
    targets = [folder / name for name in SHIPPED[scheduler]]
    for target in targets:
        if target.exists():
            raise InputError("out", f"is {str(folder)!r}, which holds {target.name!r} already", "choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for target in targets:
        target.write_bytes((SHIPPED_DIR / target.name).read_bytes())
    return targets
