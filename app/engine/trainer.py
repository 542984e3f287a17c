"""The live state of a run: model, optimizer and where it stands, moved on one step at a time.

The loop of a phase is :meth:`Trainer.train`. After each step, and in this order: metric lines that are due, the
validation loss if due, a checkpoint if due. A checkpoint therefore holds all of its step's lines, and a restart
repeats whole steps. Nothing is read back from the device between two lines (:mod:`app.engine.curve`, which also
says when a run has diverged).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from app.contract import Spec
from app.engine.checkpoint_files import Checkpoint, Progress, flat_names
from app.engine.checkpoints import CheckpointFolder
from app.engine.curve import Curve, Position
from app.engine.data import Corpus, train_windows, validation_windows
from app.engine.distributed import World, gather_into, whole
from app.engine.errors import DivergedError
from app.engine.evaluation import evaluate
from app.engine.growing import build_target, grow_state
from app.engine.healing import Healing
from app.engine.loss import shard_loss
from app.engine.metrics import EventsWriter, MetricsWriter
from app.engine.models import build_model, initialize
from app.engine.operators.base import Growth
from app.engine.operators.mask import BranchMask, attach_mask
from app.engine.optimizer import (
    apply_gradients,
    build_optimizer,
    empty_optimizer_tensors,
    load_optimizer_tensors,
    optimizer_tensors,
)
from app.engine.plan import PhasePlan
from app.engine.step import accumulate_gradients, make_ready

NUM_LINES_PER_EVALUATION = 4


def crosses(tokens_before: int, tokens_after: int, every_tokens: int) -> bool:
    """Whether a multiple of ``every_tokens`` lies in (tokens_before, tokens_after].

    >>> crosses(900, 1000, 1000), crosses(1000, 1100, 1000)
    (True, False)
    """
    return tokens_after // every_tokens > tokens_before // every_tokens


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The run directory's files as a trainer writes them."""

    metrics: MetricsWriter
    events: EventsWriter
    checkpoints: CheckpointFolder


class PauseRequestedError(Exception):
    """A pause was asked for in the middle of the growth step, which is done again from the base's last checkpoint."""


class Trainer:
    """Model, optimizer and counters of a run.

    Args:
        spec: the run.
        corpus: its tokens, checked.
        first_phase: phase that :meth:`begin` starts with.
        growth: how the base becomes the target; None where nothing grows.
        files: where lines, events and checkpoints go.
        world: the processes that train, and this one's device.
    """

    def __init__(
        self,
        spec: Spec,
        corpus: Corpus,
        first_phase: PhasePlan,
        growth: Growth | None,
        files: RunFiles,
        world: World,
    ) -> None:
        self._spec, self._corpus, self._growth, self._files = spec, corpus, growth, files
        self._world, self._device = world, world.device
        context_length = spec.model.context_length
        self._num_windows = corpus.train.num_windows(context_length)
        fixed = validation_windows(
            num_available=corpus.validation.num_windows(context_length), num_windows=spec.evaluation.num_windows
        )
        fixed = fixed[world.share(len(fixed))]
        self._validation = torch.from_numpy(corpus.validation.windows(fixed, context_length)).to(self._device)
        self._started_at = time.monotonic()
        self._elapsed_seconds = 0.0
        self._curve = Curve(spec, files.metrics, world.device, world.size)
        self._set_up(first_phase)

    def _set_up(self, phase: PhasePlan) -> None:
        """New weights for a phase's shape, and no progress in it."""
        self.phase = phase
        self.num_steps = 0
        self.validation_loss_nats: float | None = None
        self.healing: Healing | None = None
        self._curve.clear()
        self._adopt(self._new_model())

    def _new_model(self) -> PreTrainedModel:
        """The phase's model, on the CPU, its weights not ours yet."""
        if self.phase.name == "grown":
            assert self._growth is not None
            assert self._spec.base_model is not None
            return build_target(self._spec.base_model, self._growth)
        return build_model(self.phase.shape, num_layers=self.phase.num_layers)

    def _adopt(self, model: PreTrainedModel) -> None:
        """Make a whole, plain model the one that trains, with an optimizer that has no state yet."""
        make_ready(model, self._spec)
        self._world.place(model)
        shard_loss(model)
        self._mask: BranchMask | None = None
        if self.phase.name == "grown" and self._growth is not None and self._growth.operator == "random":
            self._mask = attach_mask(model, self._growth)
        self.model: PreTrainedModel = model
        self._optimizer = build_optimizer(model, self._spec.training)

    def begin(self) -> None:
        """Start the run with weights drawn from the spec's seed."""
        initialize(self.model, seed=self._spec.init_seed)

    def begin_with_base(self, base: PreTrainedModel) -> None:
        """Start at the end of a base phase that was trained elsewhere, and measure its loss."""
        self._adopt(base)
        self.num_steps = self.phase.num_steps
        self.validate()

    def restore(self, checkpoint: Checkpoint, phase: PhasePlan) -> None:
        """Stand exactly where the checkpoint was taken."""
        progress = checkpoint.progress
        self._set_up(phase)
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        moments = empty_optimizer_tensors(self.model, self._optimizer, checkpoint.names_with_state())
        checkpoint.read(flat_names(weights, moments))
        self.num_steps = progress.num_steps
        self.validation_loss_nats = progress.validation_loss_nats
        self.healing = progress.healing
        self._curve.resume(
            loss_sum=progress.loss_sum,
            grad_norm_sum=progress.grad_norm_sum,
            num_summed_steps=progress.num_summed_steps,
            num_high_lines=progress.num_high_lines,
        )
        self._elapsed_seconds = progress.elapsed_seconds
        self._files.metrics.next_seq = progress.next_seq
        self._open_mask()

    @property
    def tokens(self) -> int:
        """Tokens seen in this phase."""
        return self.num_steps * self.phase.batch_tokens

    @property
    def compute_flops(self) -> float:
        """Training FLOPs of the run so far."""
        return self.phase.compute_flops(self.num_steps)

    @property
    def duration_seconds(self) -> float:
        """Seconds the run took, over all its lives up to their last checkpoints."""
        return self._elapsed_seconds + time.monotonic() - self._started_at

    @property
    def position(self) -> Position:
        return Position(phase=self.phase.name, tokens=self.tokens, compute_flops=self.compute_flops)

    # --- the loop ------------------------------------------------------------------------------------------

    def train(self, pause_requested: Callable[[], bool]) -> bool:
        """Train the rest of the phase; False where a pause was asked for first (a checkpoint is saved either way).

        Raises:
            DivergedError: by the rule of :mod:`app.engine.curve`; the last checkpoint stands before it.
        """
        evaluation, phase = self._spec.evaluation, self.phase
        line_tokens = max(1, evaluation.every_tokens // NUM_LINES_PER_EVALUATION)
        self._curve.restart_clock()
        while self.num_steps < phase.num_steps:
            if pause_requested():
                self.save()
                return False
            tokens_before, run_tokens_before = self.tokens, phase.run_tokens(self.num_steps)
            learning_rate = self._step()
            is_last = self.num_steps == phase.num_steps
            if is_last or crosses(tokens_before, self.tokens, line_tokens):
                self._curve.write_training_lines(
                    self.position, learning_rate=learning_rate, flops_per_token=phase.flops_per_token
                )
            if is_last or crosses(tokens_before, self.tokens, evaluation.every_tokens):
                self.validate()
            run_tokens = phase.run_tokens(self.num_steps)
            is_due = crosses(run_tokens_before, run_tokens, self._spec.checkpoint_every_tokens)
            is_kept = self.num_steps in phase.kept_steps
            if is_last or is_kept or (is_due and not self._curve.num_high_lines):
                self.save()
        return True

    def _step(self) -> float:
        """One step; returns its learning rate."""
        spec, phase = self._spec, self.phase
        windows = self._batch(phase, self.num_steps, self._world.share(phase.batch_sequences))
        self.num_steps += 1
        self._open_mask()
        loss = accumulate_gradients(
            self.model, windows, micro_batch_sequences=spec.micro_batch_sequences, precision=spec.precision
        )
        learning_rate = phase.schedule.learning_rate(self.tokens)
        grad_norm = apply_gradients(
            self.model, self._optimizer, learning_rate=learning_rate, gradient_clip=spec.training.gradient_clip
        )
        self._curve.add(self._world.mean(loss), grad_norm, num_tokens=phase.batch_tokens)
        self._files.events.move_to(phase.name, self.tokens)
        return learning_rate

    def _batch(self, phase: PhasePlan, step: int, share: slice) -> torch.Tensor:
        """A share of the windows (B, S + 1) that a step of a phase reads, on the device."""
        first = phase.run_sequences(step)
        sequences = np.arange(first, first + phase.batch_sequences, dtype=np.int64)[share]
        indices = train_windows(sequences, num_windows=self._num_windows, data_seed=self._spec.data_seed)
        windows = torch.from_numpy(self._corpus.train.windows(indices, self._spec.model.context_length))
        return windows.to(self._device, non_blocking=True)

    def _open_mask(self) -> None:
        """The mask of the tokens seen once the step is done: open it is folded, and the model a plain one."""
        if self._mask is None:
            return
        assert self._spec.growth is not None
        assert self._spec.growth.mask_tokens is not None
        m = min(1.0, self.tokens / self._spec.growth.mask_tokens)
        self._mask.set(m)
        if m == 1.0:
            self._mask.fold()
            self._mask = None

    def whole_model(self) -> PreTrainedModel:
        """The model with whole weights: itself, or where it is sharded a copy, made by all ranks together."""
        if self._world.size == 1:
            return self.model
        copy = self._new_model().to(self._device)
        gather_into(copy, self.model)
        return copy

    # --- the growth step -----------------------------------------------------------------------------------

    def grow_into(self, phase: PhasePlan, pause_requested: Callable[[], bool]) -> None:
        """Replace the base by the target grown from it.

        Raises:
            PauseRequestedError: asked for while maps were trained; nothing has changed.
        """
        assert self._growth is not None
        assert self._spec.growth is not None
        assert self.validation_loss_nats is not None

        def batches() -> Iterator[torch.Tensor]:
            for step in range(phase.num_learn_steps):
                if pause_requested():
                    raise PauseRequestedError
                yield self._batch(phase, step, self._world.share(phase.batch_sequences))

        started = time.monotonic()
        policy = self._spec.growth.optimizer_state_policy
        moments = optimizer_tensors(self.model, self._optimizer) if policy != "reset" else {}
        grown = grow_state(
            self.whole_model(),
            {name: {key: whole(tensor) for key, tensor in state.items()} for name, state in moments.items()},
            self._growth,
            optimizer_state_policy=policy,
            batches=batches(),
            num_learn_steps=phase.num_learn_steps,
            precision=self._spec.precision,
            micro_batch_sequences=self._spec.micro_batch_sequences,
            mean=self._world.mean,
        )
        self.phase, self.num_steps = phase, phase.num_learn_steps
        self._adopt(grown.model)
        load_optimizer_tensors(self.model, self._optimizer, grown.optimizer)
        self.healing = Healing(loss_before_nats=self.validation_loss_nats)
        del grown  # its moments are a second copy of the optimizer's
        self._open_mask()
        self._files.events.move_to(phase.name, self.tokens)
        step = Position(phase="growth", tokens=self.tokens, compute_flops=self.compute_flops)
        self._curve.write(step, "growth_seconds", time.monotonic() - started, unit="s")
        self._curve.write(step, "growth_flops", self.compute_flops - phase.flops_before, unit="FLOPs")
        self.validate()

    # --- lines and checkpoints -----------------------------------------------------------------------------

    def validate(self) -> None:
        """Measure and write the validation loss, and after growth what it says of spike and healing."""
        spec = self._spec
        share = evaluate(
            self.model,
            self._validation,
            batch_sequences=spec.micro_batch_sequences or spec.training.batch_sequences,
            precision=spec.precision,
        )
        loss = float(self._world.mean(torch.tensor(share, dtype=torch.float64, device=self._device)))
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss is {loss} after {self.tokens} tokens of {self.phase.name}")
        self.validation_loss_nats = loss
        self._curve.write(self.position, "validation_loss", loss, unit="nats", split="validation")
        print(f"{self.phase.name} {self.tokens:,} tokens: validation loss {loss:.4f}", flush=True)
        if self.healing is not None:
            self._heal(self.healing, self.healing.after(self.tokens, loss))
        self._curve.restart_clock()

    def _heal(self, before: Healing, after: Healing) -> None:
        self.healing = after
        if before.spike_height_nats is None and after.spike_height_nats is not None:
            self._curve.write(self.position, "spike_height", after.spike_height_nats, unit="nats", split="validation")
        if before.healing_tokens is None and after.healing_tokens is not None:
            self._curve.write(self.position, "healing_tokens", after.healing_tokens, unit="tokens", split="validation")

    def save(self) -> None:
        """Begin to write a checkpoint of this very position."""
        loss_sum, grad_norm_sum = self._curve.sums(self.position)
        self._files.metrics.sync()
        progress = Progress(
            phase=self.phase.name,
            num_steps=self.num_steps,
            run_tokens=self.phase.run_tokens(self.num_steps),
            next_seq=self._files.metrics.next_seq,
            loss_sum=loss_sum,
            grad_norm_sum=grad_norm_sum,
            num_summed_steps=self._curve.num_summed_steps,
            num_high_lines=self._curve.num_high_lines,
            validation_loss_nats=self.validation_loss_nats,
            healing=self.healing,
            elapsed_seconds=self.duration_seconds,
        )
        model = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        is_phase_end = self.num_steps == self.phase.num_steps
        is_kept = self.num_steps in self.phase.kept_steps
        self._files.checkpoints.save(
            progress,
            model,
            optimizer_tensors(self.model, self._optimizer),
            keep="always" if is_kept else "run" if is_phase_end else "recent",
        )
        self.tell_saved()
        self._curve.restart_clock()

    def tell_saved(self) -> None:
        """Put the checkpoints that reached the disk into the story."""
        for name in self._files.checkpoints.take_committed():
            self._files.events.write("checkpoint", name)
