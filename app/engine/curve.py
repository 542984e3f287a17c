"""The curve of a run: metric lines, the means between two of them, and when it has diverged.

A run has diverged when its training loss or gradient norm is not finite, or when the mean training loss of
:data:`NUM_HIGH_LINES` lines in a row lies more than :data:`HIGH_LOSS_MARGIN_NATS` above ln(vocabulary), the loss of
a guess that knows nothing: new weights start near it, a growth spike stays below it. While the last line was that
high no checkpoint falls due, so the last one stands before the trouble.

Losses and norms are summed on the device and read back only for a line or a checkpoint.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from app.contract import Phase, Spec
from app.engine.errors import DivergedError
from app.engine.hardware import peak_flops_of, peak_memory_bytes
from app.engine.metrics import MetricsWriter

HIGH_LOSS_MARGIN_NATS = 1.0
NUM_HIGH_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a run a line is written."""

    phase: Phase
    tokens: int
    compute_flops: float


class Curve:
    """Sums since the last training lines, and the lines themselves.

    Args:
        spec: the run.
        metrics: where lines go.
        device: where training happens.
        num_devices: how many share it.
    """

    def __init__(self, spec: Spec, metrics: MetricsWriter, device: torch.device, num_devices: int = 1) -> None:
        self._spec, self._metrics, self._device = spec, metrics, device
        peak = peak_flops_of(device)
        self._peak_flops = peak * num_devices if peak is not None else None
        self.num_high_lines = 0
        self.clear()

    def clear(self) -> None:
        """Start anew, as after a line and at the start of a phase."""
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._grad_norm_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self.num_summed_steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """tokens_per_second counts training alone: evaluations and checkpoints stand between two clocks."""
        self._clock = time.monotonic()
        self._timed_tokens = 0

    def resume(self, *, loss_sum: float, grad_norm_sum: float, num_summed_steps: int, num_high_lines: int) -> None:
        """Stand where a checkpoint was taken."""
        self.clear()
        self._loss_sum += loss_sum
        self._grad_norm_sum += grad_norm_sum
        self.num_summed_steps = num_summed_steps
        self.num_high_lines = num_high_lines

    def add(self, loss: torch.Tensor, grad_norm: torch.Tensor, *, num_tokens: int) -> None:
        """One step's loss and gradient norm, both () on the device."""
        self._loss_sum += loss
        self._grad_norm_sum += grad_norm
        self.num_summed_steps += 1
        self._timed_tokens += num_tokens

    def sums(self, position: Position) -> tuple[float, float]:
        """Sums of losses and of gradient norms since the last lines.

        Raises:
            DivergedError: one of them is not finite.
        """
        loss_sum, grad_norm_sum = float(self._loss_sum), float(self._grad_norm_sum)
        for name, total in (("training loss", loss_sum), ("gradient norm", grad_norm_sum)):
            if not math.isfinite(total):
                raise DivergedError(
                    f"the {name} is {total} after {position.tokens} tokens of {position.phase}; "
                    "lower training.peak_lr or lengthen training.warmup_tokens"
                )
        return loss_sum, grad_norm_sum

    def write(self, position: Position, metric: str, value: float, *, unit: str, split: str | None = None) -> None:
        """One line; ``split`` names the part of the corpus that the value was measured on."""
        self._metrics.write(
            metric,
            value,
            phase=position.phase,
            tokens=position.tokens,
            compute_flops=position.compute_flops,
            dataset=f"{self._spec.corpus}/{split}" if split else "",
            unit=unit,
        )

    def write_training_lines(self, position: Position, *, learning_rate: float, flops_per_token: float) -> None:
        """The means since the last such lines, and what the machine did meanwhile.

        Raises:
            DivergedError: by the rule at the head of this module.
        """
        loss, grad_norm = (total / self.num_summed_steps for total in self.sums(position))
        speed = self._timed_tokens / (time.monotonic() - self._clock)
        self.write(position, "train_loss", loss, unit="nats", split="train")
        self.write(position, "learning_rate", learning_rate, unit="1")
        self.write(position, "grad_norm", grad_norm, unit="1")
        self.write(position, "tokens_per_second", speed, unit="tokens/s")
        if self._peak_flops is not None:
            self.write(position, "mfu", speed * flops_per_token / self._peak_flops, unit="1")
        self.write(position, "peak_memory", peak_memory_bytes(self._device), unit="bytes")
        print(f"{position.phase} {position.tokens:,} tokens: loss {loss:.4f}, {speed:,.0f} tokens/s", flush=True)
        self.clear()
        limit = math.log(self._spec.model.vocab_size) + HIGH_LOSS_MARGIN_NATS
        self.num_high_lines = self.num_high_lines + 1 if loss > limit else 0
        if self.num_high_lines == NUM_HIGH_LINES:
            raise DivergedError(
                f"the training loss stood above {limit:.2f} nats (1 nat worse than an uninformed guess) for "
                f"{NUM_HIGH_LINES} lines in a row, last {loss:.2f} after {position.tokens} tokens of {position.phase}; "
                "lower training.peak_lr or lengthen training.warmup_tokens"
            )
