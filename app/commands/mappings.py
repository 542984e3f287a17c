"""Saved options of imports: by name in the service, where a team shares them, or in a file beside the logs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from app.client import Growthlaw, Refused
from app.commands.output import emit_json, json_option, print_table, url_option
from app.records import write_json_atomically
from fitting.errors import InputError


def read_mapping(client: Growthlaw, name: str) -> dict[str, Any]:
    """The saved options of a project.

    Args:
        name: a name in the service, or a file that ends in .toml or .json.

    Raises:
        InputError: the file is neither TOML nor JSON with named fields, or there is no such mapping.
    """
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        try:
            return dict(client.mapping(name)["options"])
        except Refused as error:
            raise InputError(
                "mapping", f"{name!r} is not in the service ({error})", "see `growthlaw runs mappings`"
            ) from None
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError("mapping", f"{name} cannot be read ({error})", "write TOML (.toml) or JSON (.json)") from None
    if not isinstance(found, dict):
        raise InputError("mapping", f"{name} holds no named options", "write them as in POST /runs/import")
    return found


def write_mapping(client: Growthlaw, name: str, options: Mapping[str, Any]) -> None:
    """Save what the next run of the project will need again.

    Raises:
        InputError: a file that is to be written is not .json, or cannot be.
    """
    path = Path(name)
    if path.suffix == ".toml":
        raise InputError("save_mapping", "writes no TOML", "name a .json, or a plain name for the service")
    if path.suffix == ".json":
        write_json_atomically(path, dict(options))
    else:
        client.save_mapping(name, options)


@click.command("mappings")
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Remove NAME.")
@url_option
@json_option
def mappings(url: str | None, as_json: bool, name: str | None, delete: bool) -> None:
    """Saved options of imports that the service keeps; with NAME, that one's."""
    with Growthlaw(url) as client:
        if delete:
            if name is None:
                raise click.UsageError("--delete goes with a NAME")
            client.delete_mapping(name)
            return
        if name is not None:
            emit_json(client.mapping(name)["options"])
            return
        found = client.mappings()
    if as_json:
        emit_json(found)
    else:
        print_table(("name", "updated_at"), [[mapping["name"], mapping["updated_at"]] for mapping in found])
