"""What a restart needs, as folders `checkpoints/tokens-<tokens of the run>-<phase>/`.

=====================  ============================================================================
`state.safetensors`    ``model.NAME`` and ``optimizer.NAME.{step,exp_avg,exp_avg_sq}``
`checkpoint.json`      :class:`Progress`, the run's fingerprint, size and SHA-256 of the tensors
=====================  ============================================================================

Written beside, synced, renamed, so a folder with a final name is whole unless the disk lies, which size and hash
find out: a damaged one is set aside and the one before it used. No random state is stored because training draws
nothing at random once the weights are made: there is no dropout, and the data order is a pure function.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.contract import CHECKPOINTS_DIR, METRICS_FILE, Spec
from app.engine.errors import BadDataError, BadSpecError
from app.engine.plan import TrainedPhase
from app.records import from_dict, fsync_dir, to_dict, write_json_atomically

TENSORS_FILE = "state.safetensors"
PROGRESS_FILE = "checkpoint.json"
CHECKPOINT_VERSION = 1
NUM_KEPT = 2
# Fields that do not change what a run learns; all others must be the same when it goes on.
FREE_FIELDS = ("run_id", "name", "corpus_dir", "device", "num_threads", "checkpoint_every_tokens")


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

    @property
    def name(self) -> str:
        return f"tokens-{self.run_tokens:015d}-{self.phase}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint; tensors on the CPU."""

    progress: Progress
    model: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """`checkpoint.json`."""

    progress: Progress
    fingerprint: str
    num_bytes: int
    sha256: str
    version: int = CHECKPOINT_VERSION

    def __post_init__(self) -> None:
        if self.version != CHECKPOINT_VERSION:
            raise BadSpecError(
                f"the checkpoint's version is {self.version}, but this engine reads {CHECKPOINT_VERSION}; resume with "
                "the engine that wrote it"
            )


class _DamagedError(Exception):
    """A checkpoint whose files are not what was written."""


def fingerprint(spec: Spec, content_hash: str) -> str:
    """Hash of all that decides a run's numbers: a checkpoint of another spec or corpus must not be resumed."""
    fields = {name: value for name, value in to_dict(spec).items() if name not in FREE_FIELDS}
    return hashlib.sha256(json.dumps([fields, content_hash], sort_keys=True).encode()).hexdigest()


class CheckpointFolder:
    """The `checkpoints/` of one run; keeps the last two."""

    def __init__(self, run_dir: Path, run_fingerprint: str) -> None:
        self._path = run_dir / CHECKPOINTS_DIR
        self._fingerprint = run_fingerprint

    def save(
        self,
        progress: Progress,
        model: dict[str, torch.Tensor],
        optimizer: dict[str, dict[str, torch.Tensor]],
    ) -> bool:
        """Write a checkpoint; False where this very position is saved already.

        Raises:
            OSError, safetensors.SafetensorError: it could not be written; nothing half-written is left.
        """
        self._path.mkdir(exist_ok=True)
        final = self._path / progress.name
        if final.exists():
            return False
        beside = self._path / f".{progress.name}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            tensors = {f"model.{name}": tensor for name, tensor in model.items()}
            for name, state in optimizer.items():
                tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
            save_file(tensors, beside / TENSORS_FILE)
            _fsync_file(beside / TENSORS_FILE)
            header = _Header(
                progress=progress,
                fingerprint=self._fingerprint,
                num_bytes=(beside / TENSORS_FILE).stat().st_size,
                sha256=_sha256(beside / TENSORS_FILE),
            )
            write_json_atomically(beside / PROGRESS_FILE, to_dict(header))
            os.replace(beside, final)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        fsync_dir(self._path)
        self._prune()
        return True

    def load_latest(self, *, last_seq: int) -> tuple[Checkpoint | None, list[str]]:
        """The newest usable checkpoint, and one sentence for each newer one that is not.

        Args:
            last_seq: last ``seq`` in the metrics file; going on from a checkpoint ahead of it would leave a gap.

        Raises:
            BadSpecError: the checkpoint belongs to another spec or corpus.
            BadDataError: the metrics file lacks lines the checkpoint takes for written.
            OSError: the disk could not be read; nothing is given up for that.
        """
        refusals = []
        for path in reversed(self._paths()):
            try:
                checkpoint = self._load(path)
            except (_DamagedError, FileNotFoundError, SafetensorError) as error:
                # Set aside, not deleted: the run must be able to save this position again, and someone may look.
                damaged = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(damaged, ignore_errors=True)
                path.rename(damaged)
                refusals.append(f"{path.name} is damaged ({error}); going back to the checkpoint before it")
                continue
            if checkpoint.progress.next_seq > last_seq + 1:
                raise BadDataError(
                    f"{METRICS_FILE} ends at seq {last_seq}, but {path} goes on from {checkpoint.progress.next_seq}; "
                    f"restore the file, or remove {CHECKPOINTS_DIR}/ to train from the start"
                )
            return checkpoint, refusals
        return None, refusals

    def remove(self) -> None:
        """Drop all checkpoints: the run is over and its exports hold the weights."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _load(self, path: Path) -> Checkpoint:
        try:
            header = from_dict(_Header, json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8")))
        except BadSpecError:
            raise
        except ValueError as error:
            raise _DamagedError(f"{PROGRESS_FILE}: {error}") from None
        if header.fingerprint != self._fingerprint:
            raise BadSpecError(
                f"{path} was written under another spec or corpus; restore spec.json and the corpus, or start a new run"
            )
        num_bytes = (path / TENSORS_FILE).stat().st_size
        if num_bytes != header.num_bytes:
            raise _DamagedError(f"{TENSORS_FILE} has {num_bytes} bytes instead of {header.num_bytes}")
        if _sha256(path / TENSORS_FILE) != header.sha256:
            raise _DamagedError(f"{TENSORS_FILE} does not match its SHA-256")
        model: dict[str, torch.Tensor] = {}
        optimizer: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in load_file(path / TENSORS_FILE).items():
            part, _, parameter = name.partition(".")
            if part == "model":
                model[parameter] = tensor
            else:
                parameter, _, key = parameter.rpartition(".")
                optimizer.setdefault(parameter, {})[key] = tensor
        return Checkpoint(progress=header.progress, model=model, optimizer=optimizer)

    def _paths(self) -> list[Path]:
        # Zero-padded tokens first, and "base" sorts before "grown": names in order are checkpoints in order.
        return sorted(self._path.glob("tokens-*")) if self._path.exists() else []

    def _prune(self) -> None:
        for path in self._paths()[:-NUM_KEPT]:
            shutil.rmtree(path)
        for path in self._path.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
