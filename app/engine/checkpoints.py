"""The checkpoints of a run, as folders `checkpoints/tokens-<tokens of the run>-<phase>/`.

What lies in one is :mod:`app.engine.checkpoint_files`; here is when they are written, kept and taken up again.

**In the background.** :meth:`CheckpointFolder.save` copies the state to host memory and returns; a thread writes
beside, syncs, hashes and renames. The next save, :meth:`CheckpointFolder.wait` and :meth:`CheckpointFolder.close` wait
for it. A crash in between leaves the checkpoint before it. A folder with a final name is whole unless the disk lies,
which size and hash find out: a damaged one is set aside and the one before it used.

**How long.** ``recent``: the last :data:`NUM_KEPT` of all. ``run``: until the run has its result (phase ends).
``always``: never removed; decay legs branch off these (:meth:`CheckpointFolder.load_at`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from app.contract import CHECKPOINTS_DIR, METRICS_FILE
from app.engine.checkpoint_files import (
    PROGRESS_FILE,
    Checkpoint,
    DamagedError,
    Header,
    Keep,
    Progress,
    Tensors,
    check_files,
    describe_file,
    expect_one_process,
    fingerprint,
    flat_names,
    open_checkpoint,
    read_header,
)
from app.engine.distributed import Agreement, World
from app.engine.errors import BadDataError, BadSpecError
from app.records import fsync_dir, to_dict, write_json_atomically

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Keep",
    "Progress",
    "fingerprint",
    "flat_names",
    "open_checkpoint",
]

NUM_KEPT = 2
# A rank's tensors are spread over files of about this size: one file is serialized in memory at a time.
FILE_BYTES = 2**30


class CheckpointFolder:
    """The `checkpoints/` of one run.

    Every method but :meth:`take_committed` must be called by all ranks alike; it then returns or raises alike.

    Args:
        run_dir: the run directory.
        run_fingerprint: of the run's spec and corpus.
        world: the ranks of the run; None for one process.
    """

    def __init__(self, run_dir: Path, run_fingerprint: str, world: World | None = None) -> None:
        self._path = run_dir / CHECKPOINTS_DIR
        self._fingerprint = run_fingerprint
        self._main, self._saving = (world.main, world.saving) if world else (Agreement(), Agreement())
        is_cuda = world is not None and world.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=is_cuda, use_shared_memory=False, use_async_staging=False,
                use_non_blocking_copy=is_cuda,
            )
        )  # fmt: skip
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._committed: list[str] = []
        expect_one_process()

    def save(
        self, progress: Progress, model: Tensors, optimizer: Mapping[str, Tensors], *, keep: Keep = "recent"
    ) -> bool:
        """Begin to write a checkpoint, after the one before it is done; False where this position is saved already.

        The tensors may change as soon as this returns.

        Args:
            progress: where the run stands.
            model: weights by name, whole or sharded.
            optimizer: per parameter name its ``step`` and moments.
            keep: for how long; see the head of this module.

        Raises:
            OSError: the one before it could not be written; nothing half-written is left. One that fails in the
                background is told by the next save or by :meth:`wait`.
        """
        self.wait()
        if self._main.from_main((self._path / progress.name).exists):
            return False
        staged = self._stager.stage(flat_names(model, optimizer))
        assert isinstance(staged, dict), "staging is not asynchronous"
        self._pending = self._thread.submit(self._write, progress, staged, keep)
        return True

    def wait(self) -> None:
        """Until the save in the background is on disk.

        Raises:
            OSError: it could not be written; nothing half-written is left.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def take_committed(self) -> list[str]:
        """Names of the checkpoints that reached the disk since the last call."""
        names = self._committed.copy()
        del self._committed[: len(names)]
        return names

    def close(self) -> None:
        """Wait for the save in the background whatever becomes of it; a run that ends has a reason of its own."""
        self._thread.shutdown(wait=True)

    def load_latest(self, *, last_seq: int) -> tuple[Checkpoint | None, list[str]]:
        """The newest usable checkpoint, and one sentence for each newer one that is not.

        Args:
            last_seq: last ``seq`` in the metrics file; going on from a checkpoint ahead of it would leave a gap.

        Raises:
            BadSpecError: the checkpoint belongs to another spec or corpus.
            BadDataError: the metrics file lacks lines the checkpoint takes for written.
            OSError: the disk could not be read; nothing is given up for that.
        """
        self.wait()
        refusals = []
        for path in reversed(self._main.from_main(self._paths)):
            try:
                header = self._checked(path)
            except (DamagedError, FileNotFoundError) as error:
                self._main.from_main(lambda path=path: _set_aside(path))  # type: ignore[misc]
                refusals.append(f"{path.name} is damaged ({error}); going back to the checkpoint before it")
                continue
            if header.fingerprint != self._fingerprint:
                raise BadSpecError(
                    f"{path} was written under another spec or corpus; restore spec.json and the corpus, or start a "
                    "new run"
                )
            if header.progress.next_seq > last_seq + 1:
                raise BadDataError(
                    f"{METRICS_FILE} ends at seq {last_seq}, but {path} goes on from {header.progress.next_seq}; "
                    f"restore the file, or remove {CHECKPOINTS_DIR}/ to train from the start"
                )
            return Checkpoint(progress=header.progress, fingerprint=header.fingerprint, path=path), refusals
        return None, refusals

    def load_at(self, run_tokens: int) -> Checkpoint:
        """The checkpoint at ``run_tokens`` tokens of this run, of the later phase where two stand there.

        For runs that branch off another one: a decay leg opens its trunk's folder, whose spec is not its own, so the
        fingerprint is not compared; what must be equal the caller compares.

        Raises:
            BadSpecError: none stands there; the message names those that do.
            BadDataError: it is damaged.
        """
        self.wait()
        paths = self._main.from_main(self._paths)
        names = [path.name for path in paths if path.name.startswith(f"tokens-{run_tokens:015d}-")]
        if not names:
            known = ", ".join(str(int(path.name.split("-")[1])) for path in paths) or "none at all"
            raise BadSpecError(
                f"there is no checkpoint at {run_tokens} tokens in {self._path}, which has {known}; branch off one of "
                "these, or train the trunk with keep_checkpoints_at_tokens"
            )
        path = self._path / names[-1]
        try:
            header = self._checked(path)
        except (DamagedError, FileNotFoundError) as error:
            raise BadDataError(f"{path} is damaged ({error}); branch off another checkpoint") from None
        return Checkpoint(progress=header.progress, fingerprint=header.fingerprint, path=path)

    def remove(self) -> None:
        """Drop all checkpoints but those kept always: the run is over and its exports hold the weights."""
        self.wait()
        self._main.from_main(self._remove)

    def _write(self, progress: Progress, tensors: dict[str, torch.Tensor], keep: Keep) -> None:
        """Runs in the background, on all ranks alike."""
        saving = self._saving
        final, beside = self._path / progress.name, self._path / f".{progress.name}.partial"
        try:
            saving.from_main(lambda: _make_empty(beside))
            writer = dcp.HuggingFaceStorageWriter(
                str(beside), save_distributed=True, fqn_to_index_mapping=_file_indices(tensors)
            )
            try:
                dcp.save(tensors, storage_writer=writer, process_group=saving.group, no_dist=saving.size == 1)
            except CheckpointException as error:
                # No Exception to Python, so nobody would catch it; the cause of the lowest rank says what happened.
                raise error.failures[min(error.failures)][0] from None
            names = saving.from_main(lambda: sorted(path.name for path in beside.iterdir()))
            parts = saving.together(
                lambda: [describe_file(beside / name) for name in names[saving.rank :: saving.size]]
            )
            header = Header(
                progress=progress,
                fingerprint=self._fingerprint,
                keep=keep,
                files=tuple(sorted((file for part in parts for file in part), key=lambda file: file.name)),
            )
            saving.from_main(lambda: self._commit(header, beside, final))
        except BaseException:
            if saving.is_main:
                shutil.rmtree(beside, ignore_errors=True)
            raise
        self._committed.append(progress.name)

    def _commit(self, header: Header, beside: Path, final: Path) -> None:
        write_json_atomically(beside / PROGRESS_FILE, to_dict(header))
        os.replace(beside, final)
        fsync_dir(self._path)
        for path in self._paths()[:-NUM_KEPT]:
            if _keep_of(path) == "recent":
                shutil.rmtree(path)
        for path in self._path.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self) -> None:
        if not self._path.exists():
            return
        for path in self._path.iterdir():
            if not path.name.startswith("tokens-") or _keep_of(path) != "always":
                shutil.rmtree(path, ignore_errors=True)
        if not any(self._path.iterdir()):
            self._path.rmdir()

    def _checked(self, path: Path) -> Header:
        """The header of a checkpoint whose files are whole; each rank reads its part of them."""
        header = self._main.from_main(lambda: read_header(path))
        self._main.together(lambda: check_files(path, header.files[self._main.rank :: self._main.size]))
        return header

    def _paths(self) -> list[Path]:
        # Zero-padded tokens first, and "base" sorts before "grown": names in order are checkpoints in order.
        return sorted(self._path.glob("tokens-*")) if self._path.exists() else []


def _keep_of(path: Path) -> Keep:
    """How long a checkpoint is kept; one that cannot say is for :meth:`CheckpointFolder.load_latest` to judge."""
    try:
        return read_header(path).keep
    except (DamagedError, BadSpecError, FileNotFoundError):
        return "recent"


def _set_aside(path: Path) -> None:
    """Not deleted: the run must be able to save this position again, and someone may look."""
    damaged = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(damaged, ignore_errors=True)
    path.rename(damaged)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _file_indices(tensors: Tensors) -> dict[str, int]:
    """File number of each tensor, from 1; the same on all ranks, who see the same names and whole shapes."""
    indices, num_bytes = {}, 0
    for name, tensor in tensors.items():
        indices[name] = 1 + num_bytes // FILE_BYTES
        num_bytes += tensor.numel() * tensor.element_size()
    return indices
