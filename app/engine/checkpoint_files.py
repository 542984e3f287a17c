"""What lies in a checkpoint folder: tensors that describe themselves, and where the run stood.

=====================  ============================================================================
`*.safetensors`        ``model.NAME`` and ``optimizer.NAME.{step,exp_avg,exp_avg_sq}``: one file or
                       more a rank, each with its rank's pieces of the tensors and where they belong
`checkpoint.json`      :class:`Progress`, the run's fingerprint, how long the checkpoint is kept,
                       size and SHA-256 of every other file
=====================  ============================================================================

**Data, never code.** torch.distributed.checkpoint writes its own index as a pickle; with its safetensors storage the
files describe themselves, and any number of ranks reads what any other number wrote.

No random state is stored because training draws nothing at random once the weights are made: there is no dropout, and
the data order is a pure function.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from app.contract import CHECKPOINTS_DIR, FREE_FIELDS, Spec
from app.engine.errors import BadDataError, BadSpecError
from app.engine.healing import Healing
from app.engine.plan import TrainedPhase
from app.records import from_dict, to_dict

PROGRESS_FILE = "checkpoint.json"
CHECKPOINT_VERSION = 2

Keep = Literal["recent", "run", "always"]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands between two steps; sums are over the steps since the last train_loss line."""

    phase: TrainedPhase
    num_steps: int
    run_tokens: int
    next_seq: int
    loss_sum: float
    grad_norm_sum: float
    num_summed_steps: int
    num_high_lines: int
    validation_loss_nats: float | None
    elapsed_seconds: float
    healing: Healing | None = None

    @property
    def name(self) -> str:
        return f"tokens-{self.run_tokens:015d}-{self.phase}"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """`checkpoint.json`: where the run stood and what the files beside it must be."""

    progress: Progress
    fingerprint: str
    keep: Keep
    files: tuple[StoredFile, ...]
    version: int = CHECKPOINT_VERSION


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk, its files checked; the tensors are read when asked for.

    Attributes:
        progress: where the run stood.
        fingerprint: of the spec and corpus it was written under (:func:`fingerprint`).
        path: its folder.
    """

    progress: Progress
    fingerprint: str
    path: Path

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shape of every tensor by its flat name, ``model.NAME`` or ``optimizer.NAME.KEY``."""
        return {name: stored.size for name, stored in self._stored().items()}

    def names_with_state(self) -> set[str]:
        """Parameter names that have optimizer state: none before the first step, or with the moments just reset."""
        return {
            name.removeprefix("optimizer.").rpartition(".")[0]
            for name in self.shapes()
            if name.startswith("optimizer.")
        }

    def read(self, tensors: Tensors) -> None:
        """Fill ``tensors`` (flat names; whole or sharded, on any device) in place; a rank reads only its pieces.

        Raises:
            BadDataError: the checkpoint lacks one of them, or holds it with another shape.
        """
        stored = self.shapes()
        for name, tensor in tensors.items():
            if stored.get(name) != tensor.shape:
                raise BadDataError(
                    f"{self.path} holds {name} as {stored.get(name)}, but {tensor.shape} is needed; it was written "
                    "for another model"
                )
        # Every rank plans for itself: the files say where each piece lies, so there is nothing to agree on.
        expect_one_process()
        dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(self.path)), no_dist=True)

    def read_whole(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
        """Everything on the CPU: weights by name, and per parameter name ``step``, ``exp_avg``, ``exp_avg_sq``."""
        tensors = {
            name: torch.empty(stored.size, dtype=stored.properties.dtype) for name, stored in self._stored().items()
        }
        self.read(tensors)
        model: dict[str, torch.Tensor] = {}
        optimizer: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, parameter = name.partition(".")
            if part == "model":
                model[parameter] = tensor
            else:
                parameter, _, key = parameter.rpartition(".")
                optimizer.setdefault(parameter, {})[key] = tensor
        return model, optimizer

    def _stored(self) -> dict[str, TensorStorageMetadata]:
        stored = dcp.HuggingFaceStorageReader(str(self.path)).read_metadata().state_dict_metadata
        return {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}


class DamagedError(Exception):
    """A checkpoint whose files are not what was written."""


def flat_names(model: Tensors, optimizer: Mapping[str, Tensors]) -> dict[str, torch.Tensor]:
    """A state under the names it has in a checkpoint: ``model.NAME`` and ``optimizer.NAME.KEY``."""
    tensors = {f"model.{name}": tensor for name, tensor in model.items()}
    for name, state in optimizer.items():
        tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
    return tensors


def fingerprint(spec: Spec, content_hash: str) -> str:
    """Hash of all that decides a run's numbers: a checkpoint of another spec or corpus must not be resumed."""
    fields = {name: value for name, value in to_dict(spec).items() if name not in FREE_FIELDS}
    return hashlib.sha256(json.dumps([fields, content_hash], sort_keys=True).encode()).hexdigest()


def open_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint folder of any run, checked byte by byte.

    Raises:
        BadDataError: it is not a whole checkpoint.
        BadSpecError: it is of another version.
    """
    try:
        header = read_header(path)
        check_files(path, header.files)
    except (DamagedError, FileNotFoundError, NotADirectoryError) as error:
        raise BadDataError(f"{path} is no whole checkpoint ({error}); name a folder below {CHECKPOINTS_DIR}/") from None
    return Checkpoint(progress=header.progress, fingerprint=header.fingerprint, path=path)


def read_header(path: Path) -> Header:
    try:
        values = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        version = values["version"]
        if version == CHECKPOINT_VERSION:
            return from_dict(Header, values)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{PROGRESS_FILE}: {error}") from None
    raise BadSpecError(
        f"the version of {path} is {version!r}, but this engine reads {CHECKPOINT_VERSION}; resume with the engine that "
        "wrote it"
    )


def check_files(path: Path, files: tuple[StoredFile, ...]) -> None:
    for file in files:
        num_bytes = (path / file.name).stat().st_size
        if num_bytes != file.num_bytes:
            raise DamagedError(f"{file.name} has {num_bytes} bytes instead of {file.num_bytes}")
        if describe_file(path / file.name) != file:
            raise DamagedError(f"{file.name} does not match its SHA-256")


def describe_file(path: Path) -> StoredFile:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(name=path.name, num_bytes=path.stat().st_size, sha256=digest)


def expect_one_process() -> None:
    """One process is what is asked for, but torch warns of it at every save and load."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
