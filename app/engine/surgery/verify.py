"""Proving a grown folder against its growth.json, and against its base where that is at hand.

==================  ====================================================================================================
without the base    every file is there with its size; headers and small files have their hashes; the folder is a whole
                    checkpoint whose layers are those of config.json; hashed tensors have their hashes
with the base       besides: the base is the one that was grown, and every copied tensor has its source's bytes, type
                    and shape
==================  ====================================================================================================

Standard library only; tensors are read in pieces.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.surgery.copying import Progress, SourceFiles, no_progress, read_pieces
from app.engine.surgery.families import family_of
from app.engine.surgery.folder import Folder, StoredTensor, read_folder
from app.engine.surgery.manifest import MANIFEST_FILE, read_manifest
from app.engine.surgery.plan import check_layers
from fitting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was proved and what was found wrong, a sentence each; the folder is good where nothing is wrong."""

    proved: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.problems


def verify(path: Path, source: Path | None = None, progress: Progress = no_progress) -> Verdict:
    """Check a grown folder.

    Args:
        path: the folder.
        source: its base; None checks the folder by itself.
        progress: told the bytes read of tensors, see :func:`bytes_to_read`.

    Raises:
        InputError: there is no readable growth.json, so that there is nothing to prove, or the base cannot be read.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(str(path / MANIFEST_FILE), "is missing", "give a folder that growthlaw grew")
    base = None if source is None else read_folder(source)
    proved, problems = _check_files(path, manifest)
    try:
        folder = read_folder(path)
        family = family_of(folder.config)
        check_layers(folder, family)
        num_layers = family.num_layers(folder.config)
        if num_layers != manifest.get("num_target_layers"):
            problems.append(f"config.json has {num_layers} layers, growth.json {manifest.get('num_target_layers')}")
    except InputError as error:
        return Verdict(proved=tuple(proved), problems=(*problems, str(error)))
    proved.append(
        f"{len(folder.tensors)} tensors in {len(folder.shards)} shards lie in their files without gap or overlap and make "
        f"the {num_layers} layers of config.json"
    )
    _check_hashes(folder, manifest, proved, problems, progress)
    if base is not None:
        _check_copies(folder, base, manifest, proved, problems, progress)
    return Verdict(proved=tuple(proved), problems=tuple(problems))


def bytes_to_read(path: Path, *, with_source: bool) -> int:
    """Bytes of tensors that :func:`verify` will read of the folder."""
    manifest = read_manifest(path)
    if manifest is None:
        return 0
    tensors = read_folder(path).tensors.values()
    hashed, new = manifest["tensor_sha256"], set(manifest["new_tensors"])
    return sum(
        tensor.num_bytes * ((tensor.name in hashed) + (with_source and tensor.name not in new)) for tensor in tensors
    )


def _check_files(path: Path, manifest: dict[str, Any]) -> tuple[list[str], list[str]]:
    problems = []
    num_hashed = 0
    for name, facts in manifest["files"].items():
        file = path / name
        if os.path.isabs(name) or ".." in Path(name).parts or not isinstance(facts, dict):
            problems.append(f"growth.json: files names {name!r}, which leads out of the folder")
        elif not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != facts.get("num_bytes"):
            problems.append(f"{name} has {file.stat().st_size:,} bytes, growth.json says {facts.get('num_bytes')}")
        elif _file_sha256(file, header_only="header_sha256" in facts) != facts.get(
            "header_sha256", facts.get("sha256")
        ):
            part = "header" if "header_sha256" in facts else "content"
            problems.append(f"{name}: its {part} is not the one that was written (SHA-256 differs)")
        else:
            num_hashed += 1
    return [
        f"{num_hashed} of {len(manifest['files'])} files have their size and the hash of header or content"
    ], problems


def _file_sha256(path: Path, *, header_only: bool) -> str:
    with open(path, "rb") as file:
        if not header_only:
            return hashlib.file_digest(file, "sha256").hexdigest()
        start = file.read(8)
        num_bytes = min(int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size)
        return hashlib.sha256(start + file.read(num_bytes)).hexdigest()


def _check_hashes(
    folder: Folder, manifest: dict[str, Any], proved: list[str], problems: list[str], progress: Progress
) -> None:
    hashes = manifest["tensor_sha256"]
    if not hashes:
        return
    wrong = 0
    with SourceFiles(folder.path) as files:
        for name, expected in hashes.items():
            tensor = folder.tensors.get(name)
            if tensor is None:
                problems.append(f"{name} has a hash in growth.json, but is not among the tensors")
                continue
            digest = hashlib.sha256()
            for piece in _pieces(files, tensor):
                digest.update(piece)
                progress(len(piece))
            if digest.hexdigest() != expected:
                wrong += 1
                problems.append(f"{name} has other values than were written (SHA-256 differs)")
    proved.append(f"{len(hashes) - wrong} of {len(folder.tensors)} tensors have the hash of their values")


def _check_copies(
    folder: Folder,
    base: Folder,
    manifest: dict[str, Any],
    proved: list[str],
    problems: list[str],
    progress: Progress,
) -> None:
    if base.config_sha256 != manifest["source"].get("config_sha256"):
        problems.append(f"{base.path} is not the base that was grown: its config.json has another hash")
        return
    new = set(manifest["new_tensors"])
    num_same = num_bytes = 0
    with SourceFiles(base.path) as base_files, SourceFiles(folder.path) as files:
        for tensor in folder.tensors.values():
            if tensor.name in new:
                continue
            source = base.tensors.get(_source_name(base, tensor.name, manifest.get("layers")))
            if source is None:
                problems.append(f"{tensor.name} has no source in {base.path}")
            elif (tensor.dtype, tensor.shape) != (source.dtype, source.shape):
                problems.append(f"{tensor.name} is {tensor.dtype} {tensor.shape}, {source.name} of the base is not")
            elif not _same_bytes(files, tensor, base_files, source, progress):
                problems.append(f"{tensor.name} differs from {source.name} of the base")
            else:
                num_same += 1
                num_bytes += tensor.num_bytes
    told = (
        f"{num_same} tensors ({num_bytes:,} bytes) have, byte for byte, the values of their sources in {base.path.name}"
    )
    proved.append(f"{told}; {len(new)} hold new values" if new else told)


def _source_name(base: Folder, name: str, layers: list[int] | None) -> str:
    family = family_of(base.config)
    found = family.split(name)
    if found is None or layers is None or not 0 <= found[0] < len(layers):
        return name
    return family.with_layer(name, layers[found[0]])


def _same_bytes(
    files: SourceFiles, tensor: StoredTensor, base_files: SourceFiles, source: StoredTensor, progress: Progress
) -> bool:
    for piece, expected in zip(_pieces(files, tensor), _pieces(base_files, source), strict=True):
        if piece != expected:
            return False
        progress(len(piece))
    return True


def _pieces(files: SourceFiles, tensor: StoredTensor) -> Iterator[memoryview]:
    return read_pieces(files.descriptor(tensor.file), tensor.begin, tensor.num_bytes)
