"""The live state of a run: model, optimizer and where it stands, moved on one step at a time.

The loop of a phase is :meth:`Trainer.train`. After each step, and in this order: metric lines that are due, the
validation loss if due, a checkpoint if due. A checkpoint therefore holds all of its step's lines, and a restart
repeats whole steps. Nothing is read back from the device between two lines.

A run has diverged when its training loss or gradient norm is not finite, or when the mean training loss of
:data:`NUM_HIGH_LINES` lines in a row lies more than :data:`HIGH_LOSS_MARGIN_NATS` above ln(vocabulary), the loss of
a guess that knows nothing: new weights start near it, a growth spike stays below it. While the last line was that
high no checkpoint falls due, so the last one stands before the trouble.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from app.contract import Phase, Spec
from app.engine.checkpoints import Checkpoint, CheckpointFolder, Progress
from app.engine.data import Corpus, train_windows, validation_windows
from app.engine.errors import DivergedError
from app.engine.evaluation import evaluate
from app.engine.growth import grow_model, grow_optimizer_tensors
from app.engine.metrics import EventsWriter, MetricsWriter
from app.engine.models import build_model, initialize, next_token_loss
from app.engine.optimizer import apply_gradients, build_optimizer, load_optimizer_tensors, optimizer_tensors
from app.engine.plan import PhasePlan

NUM_LINES_PER_EVALUATION = 4
HIGH_LOSS_MARGIN_NATS = 1.0
NUM_HIGH_LINES = 3


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


class Trainer:
    """Model, optimizer and counters of a run.

    Args:
        spec: the run.
        corpus: its tokens, checked.
        first_phase: phase that :meth:`begin` starts with.
        files: where lines, events and checkpoints go.
        device: where to train.
    """

    def __init__(
        self, spec: Spec, corpus: Corpus, first_phase: PhasePlan, files: RunFiles, device: torch.device
    ) -> None:
        self._spec, self._corpus, self._files, self._device = spec, corpus, files, device
        context_length = spec.model.context_length
        self._num_windows = corpus.train.num_windows(context_length)
        fixed = validation_windows(
            num_available=corpus.validation.num_windows(context_length), num_windows=spec.evaluation.num_windows
        )
        self._validation = torch.from_numpy(corpus.validation.windows(fixed, context_length)).to(device)
        self._started_at = time.monotonic()
        self._elapsed_seconds = 0.0
        self._set_up(first_phase)

    def _set_up(self, phase: PhasePlan) -> None:
        """New weights for a phase's depth, and no progress in it."""
        self.phase = phase
        self.num_steps = 0
        self.validation_loss_nats: float | None = None
        self._num_high_lines = 0
        self._clear_sums()
        self.model: LlamaForCausalLM = build_model(self._spec.model, num_layers=phase.num_layers).to(self._device)
        self._optimizer = build_optimizer(self.model, self._spec.training)

    def begin(self) -> None:
        """Start the run with weights drawn from the spec's seed."""
        initialize(self.model, seed=self._spec.init_seed)

    def restore(self, checkpoint: Checkpoint, phase: PhasePlan) -> None:
        """Stand exactly where the checkpoint was taken."""
        progress = checkpoint.progress
        self._set_up(phase)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(checkpoint.model[name])
        load_optimizer_tensors(self.model, self._optimizer, checkpoint.optimizer)
        self.num_steps = progress.num_steps
        self.validation_loss_nats = progress.validation_loss_nats
        self._num_high_lines = progress.num_high_lines
        self._loss_sum += progress.loss_sum
        self._grad_norm_sum += progress.grad_norm_sum
        self._num_summed_steps = progress.num_summed_steps
        self._elapsed_seconds = progress.elapsed_seconds
        self._files.metrics.next_seq = progress.next_seq

    @property
    def tokens(self) -> int:
        """Tokens seen in this phase."""
        return self.num_steps * self._spec.batch_tokens

    @property
    def compute_flops(self) -> float:
        """Training FLOPs of the run so far."""
        return self.phase.compute_flops(self.num_steps)

    @property
    def duration_seconds(self) -> float:
        """Seconds the run took, over all its lives up to their last checkpoints."""
        return self._elapsed_seconds + time.monotonic() - self._started_at

    # --- the loop ------------------------------------------------------------------------------------------

    def train(self, pause_requested: Callable[[], bool]) -> bool:
        """Train the rest of the phase; False where a pause was asked for first (a checkpoint is saved either way).

        Raises:
            DivergedError: by the rule at the head of this module; the last checkpoint stands before it.
        """
        evaluation, phase = self._spec.evaluation, self.phase
        line_tokens = max(1, evaluation.every_tokens // NUM_LINES_PER_EVALUATION)
        self._restart_clock()
        while self.num_steps < phase.num_steps:
            if pause_requested():
                self.save()
                return False
            tokens_before, run_tokens_before = self.tokens, phase.run_tokens(self.num_steps)
            self._step()
            is_last = self.num_steps == phase.num_steps
            if is_last or crosses(tokens_before, self.tokens, line_tokens):
                self._write_training_lines()
            if is_last or crosses(tokens_before, self.tokens, evaluation.every_tokens):
                self.validate()
            run_tokens = phase.run_tokens(self.num_steps)
            is_due = crosses(run_tokens_before, run_tokens, self._spec.checkpoint_every_tokens)
            if is_last or (is_due and not self._num_high_lines):
                self.save()
        return True

    def _step(self) -> None:
        spec, phase = self._spec, self.phase
        num_sequences = spec.training.batch_sequences
        first = (phase.steps_before + self.num_steps) * num_sequences
        sequences = np.arange(first, first + num_sequences, dtype=np.int64)
        indices = train_windows(sequences, num_windows=self._num_windows, data_seed=spec.data_seed)
        windows = torch.from_numpy(self._corpus.train.windows(indices, spec.model.context_length))  # (B, S + 1)
        loss = next_token_loss(self.model, windows.to(self._device, non_blocking=True), precision=spec.precision)
        loss.backward()
        self.num_steps += 1
        self._learning_rate = phase.schedule.learning_rate(self.tokens)
        grad_norm = apply_gradients(
            self.model, self._optimizer, learning_rate=self._learning_rate, gradient_clip=spec.training.gradient_clip
        )
        self._loss_sum += loss.detach()
        self._grad_norm_sum += grad_norm
        self._num_summed_steps += 1
        self._num_timed_steps += 1
        self._files.events.move_to(phase.name, self.tokens)

    # --- the growth step -----------------------------------------------------------------------------------

    def grow_into(self, phase: PhasePlan, layers: tuple[int, ...], *, copy_optimizer_state: bool) -> None:
        """Replace the base by the target grown from it; ``layers`` names each target layer's source."""
        started = time.monotonic()
        base_tensors = optimizer_tensors(self.model, self._optimizer)
        model = grow_model(self.model, self._spec.model, layers)
        self._optimizer = build_optimizer(model, self._spec.training)
        if copy_optimizer_state:
            load_optimizer_tensors(model, self._optimizer, grow_optimizer_tensors(base_tensors, model, layers))
        self.model, self.phase, self.num_steps = model, phase, 0
        self._files.events.move_to(phase.name, 0)
        self._write("growth_seconds", time.monotonic() - started, dataset="", unit="s", phase="growth")
        self.validate()

    # --- lines and checkpoints -----------------------------------------------------------------------------

    def validate(self) -> None:
        """Measure and write the validation loss."""
        loss = evaluate(
            self.model,
            self._validation,
            batch_sequences=self._spec.training.batch_sequences,
            precision=self._spec.precision,
        )
        if not math.isfinite(loss):
            raise DivergedError(f"the validation loss is {loss} after {self.tokens} tokens of {self.phase.name}")
        self.validation_loss_nats = loss
        self._write("validation_loss", loss, dataset=f"{self._spec.corpus}/validation", unit="nats")
        print(f"{self.phase.name} {self.tokens:,} tokens: validation loss {loss:.4f}", flush=True)
        self._restart_clock()

    def save(self) -> None:
        """Write a checkpoint of this very position."""
        self._check_finite()
        self._files.metrics.sync()
        progress = Progress(
            phase=self.phase.name,
            num_steps=self.num_steps,
            run_tokens=self.phase.run_tokens(self.num_steps),
            next_seq=self._files.metrics.next_seq,
            loss_sum=float(self._loss_sum),
            grad_norm_sum=float(self._grad_norm_sum),
            num_summed_steps=self._num_summed_steps,
            num_high_lines=self._num_high_lines,
            validation_loss_nats=self.validation_loss_nats,
            elapsed_seconds=self.duration_seconds,
        )
        model = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        if self._files.checkpoints.save(progress, model, optimizer_tensors(self.model, self._optimizer)):
            self._files.events.write("checkpoint", progress.name)
        self._restart_clock()

    def _write_training_lines(self) -> None:
        self._check_finite()
        loss, grad_norm = (float(total) / self._num_summed_steps for total in (self._loss_sum, self._grad_norm_sum))
        speed = self._num_timed_steps * self._spec.batch_tokens / (time.monotonic() - self._clock)
        self._write("train_loss", loss, dataset=f"{self._spec.corpus}/train", unit="nats")
        self._write("learning_rate", self._learning_rate, dataset="", unit="1")
        self._write("grad_norm", grad_norm, dataset="", unit="1")
        self._write("tokens_per_second", speed, dataset="", unit="tokens/s")
        print(f"{self.phase.name} {self.tokens:,} tokens: loss {loss:.4f}, {speed:,.0f} tokens/s", flush=True)
        self._clear_sums()
        self._restart_clock()
        limit = math.log(self._spec.model.vocab_size) + HIGH_LOSS_MARGIN_NATS
        self._num_high_lines = self._num_high_lines + 1 if loss > limit else 0
        if self._num_high_lines == NUM_HIGH_LINES:
            raise DivergedError(
                f"the training loss stood above {limit:.2f} nats (1 nat worse than an uninformed guess) for "
                f"{NUM_HIGH_LINES} lines in a row, last {loss:.2f} after {self.tokens} tokens of {self.phase.name}; "
                "lower training.peak_lr or lengthen training.warmup_tokens"
            )

    def _check_finite(self) -> None:
        for name, total in (("training loss", self._loss_sum), ("gradient norm", self._grad_norm_sum)):
            if not math.isfinite(float(total)):
                raise DivergedError(
                    f"the {name} is {float(total)} after {self.tokens} tokens of {self.phase.name}; "
                    "lower training.peak_lr or lengthen training.warmup_tokens"
                )

    def _write(self, metric: str, value: float, *, dataset: str, unit: str, phase: Phase | None = None) -> None:
        self._files.metrics.write(
            metric,
            value,
            phase=phase or self.phase.name,
            tokens=self.tokens,
            compute_flops=self.compute_flops,
            dataset=dataset,
            unit=unit,
        )

    def _clear_sums(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._grad_norm_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._num_summed_steps = 0

    def _restart_clock(self) -> None:
        # tokens_per_second counts training alone: evaluations and checkpoints stand between two clocks.
        self._clock = time.monotonic()
        self._num_timed_steps = 0
