"""growth.json: how a checkpoint was grown, beside its weights.

====================  ==============================================================================================
field                 what it holds
====================  ==============================================================================================
``format_version``    of this file
``growthlaw_version`` of the program
``operator`` ...      the growth: direction, order, layers (base layer of each layer), num_base_layers, num_target_layers,
                      growth_factor, connection_rate, width_factor, noise, seed, dtype, rescale_multipliers; ``random`` and
                      ``learn`` add what they need to be understood under ``details``
``base_tokens``       tokens the base was trained on, where they were given
``source``            the base's folder name, hash of its config.json, and size and header hash of its shards
``files``             size of every file written; hash of a shard's header, of the whole of another
``new_tensors``       names of tensors that are no byte copy
``tensor_sha256``     of tensors that passed through the process, or all with ``--checksums``
``history``           the same of the growths before, oldest first, without files and tensors
====================  ==============================================================================================

No path of the machine, and nothing that differs between two runs of the same growth. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app.engine.surgery.folder import read_object
from app.engine.surgery.plan import Plan
from app.engine.surgery.writing import Written
from fitting.errors import InputError

MANIFEST_FILE = "growth.json"
FORMAT_VERSION = 1
_OF_THIS_FOLDER = ("files", "new_tensors", "tensor_sha256", "history")


def make_manifest(plan: Plan, written: Written, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The contents of growth.json."""
    request, base = plan.request, plan.folder
    in_depth = plan.layers is not None
    num_target_layers = len(plan.layers) if plan.layers is not None else plan.num_base_layers
    return {
        "format_version": FORMAT_VERSION,
        "growthlaw_version": program_version(),
        "operator": request.operator,
        "direction": "depth" if in_depth else "width",
        "order": request.order if in_depth else None,
        "layers": list(plan.layers) if plan.layers is not None else None,
        "num_base_layers": plan.num_base_layers,
        "num_target_layers": num_target_layers,
        "growth_factor": num_target_layers / plan.num_base_layers if in_depth else None,
        "connection_rate": plan.connection_rate,
        "width_factor": request.width_factor,
        "noise": request.noise,
        "seed": request.seed,
        "dtype": request.dtype,
        "rescale_multipliers": request.rescale_multipliers,
        "details": dict(details or {}),
        "base_tokens": request.base_tokens,
        "source": {
            "name": base.path.resolve().name,
            "config_sha256": base.config_sha256,
            "files": {
                shard.name: {"num_bytes": shard.num_bytes, "header_sha256": shard.header_sha256}
                for shard in base.shards.values()
            },
        },
        "files": written.files,
        "new_tensors": list(written.new_tensors),
        "tensor_sha256": written.tensor_sha256,
        "history": growth_history(base.path),
    }


def growth_history(folder: Path) -> list[dict[str, Any]]:
    """Every growth behind a folder, oldest first; empty where it was never grown.

    Raises:
        InputError: its growth.json cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return []
    last = {name: value for name, value in manifest.items() if name not in _OF_THIS_FOLDER}
    return [*manifest["history"], last]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """growth.json of a folder, None where there is none.

    Raises:
        InputError: it is damaged or of another version.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    manifest, _ = read_object(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version",
            f"is {manifest.get('format_version')!r}, but this program reads {FORMAT_VERSION}",
            "use the program that wrote it, or move the file away",
        )
    kinds = {
        "source": dict,
        "files": dict,
        "new_tensors": list,
        "tensor_sha256": dict,
        "history": list,
        "operator": str,
    }
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise InputError(f"{path}: {name}", "is missing or damaged", "grow the checkpoint again")
    return manifest


def program_version() -> str:
    try:
        return version("growthlaw")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
