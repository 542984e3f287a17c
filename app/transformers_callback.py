"""Pushes a run of transformers' Trainer to a Growthlaw service while it trains.

    Trainer(..., callbacks=[GrowthlawCallback(cohort="mine", name="8-layers", corpus="web", tokenizer="bpe-1024")])

Set ``include_num_input_tokens_seen="all"``, or give ``tokens_a_step``: tokens are never guessed. A run that goes on from a
checkpoint goes on here too, and what it repeats replaces what it repeats. A service that does not answer never
stops a training: its points are kept and sent with the next ones, and what is missing at the end is said in a warning.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from typing import Any

from transformers import TrainerCallback

from app.client import Growthlaw, NoService, ServiceError

log = logging.getLogger(__name__)

_EVALUATION = re.compile(r"eval_(?:(?P<dataset>.+)_)?loss")
_NAMES = {"loss": ("train_loss", "nats"), "learning_rate": ("learning_rate", ""), "grad_norm": ("grad_norm", "")}
# Points of one request, and points that wait for a service at most.
_BATCH = 5_000
_MOST_WAITING = 200_000


class GrowthlawCallback(TrainerCallback):
    """
    Args:
        cohort, name: where the run belongs, and what it is called there.
        decision_dataset: whose ``eval_loss`` the cohort is judged by; ``validation`` where the Trainer has one set.
        tokens_a_step: of the whole job; the Trainer's own count where None.
        client: a connection; one to ``GROWTHLAW_URL`` where None.
        facts: further fields of `POST /runs`: ``corpus``, ``tokenizer``, ``context_length``, ``stated``, ``recipe``, ...
    """

    def __init__(
        self,
        *,
        cohort: str,
        name: str,
        decision_dataset: str = "validation",
        tokens_a_step: int | None = None,
        client: Growthlaw | None = None,
        **facts: Any,
    ) -> None:
        self._body = {"cohort": cohort, "name": name, "decision_dataset": decision_dataset} | facts
        self._tokens_a_step = tokens_a_step
        # Points that are not taken wait for the next log: training stands still for no service.
        self._client = client or Growthlaw(retry_seconds=0)
        self._waiting: list[dict[str, Any]] = []
        self._run_id: str | None = None
        self._seq = 0
        self._bad_loss: str | None = None

    @property
    def run_id(self) -> str | None:
        """The run's id, once it is open."""
        return self._run_id

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._tokens_a_step is None and str(args.include_num_input_tokens_seen) == "no":
            raise ValueError('tokens are not counted: set include_num_input_tokens_seen="all", or give tokens_a_step')
        if not {"config", "target_params"} & self._body.keys():
            self._body["config"] = others["model"].config.to_dict()
        key = hashlib.sha256(f"{self._body['cohort']}\0{self._body['name']}".encode()).hexdigest()
        # A refusal (a cohort of another recipe, a missing field) is better told now than after the training.
        opened = self._client.open_run(self._body, idempotency_key=f"transformers-{key}")
        self._run_id, self._seq = opened["run"]["run_id"], opened["next_seq"]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if self._run_id is None or not logs or "train_loss" in logs:  # the last row sums the run up
            return
        tokens = state.num_input_tokens_seen if self._tokens_a_step is None else state.global_step * self._tokens_a_step
        for name, value in logs.items():
            metric, unit, dataset = *_NAMES.get(name, ("", "")), ""
            if evaluation := _EVALUATION.fullmatch(name):
                metric, unit, dataset = "validation_loss", "nats", evaluation["dataset"] or "validation"
            if not metric:
                continue
            if metric.endswith("_loss"):
                self._bad_loss = (
                    None if math.isfinite(float(value)) else f"{name} was no number at step {state.global_step}"
                )
            if math.isfinite(float(value)):
                point = {
                    "tokens": int(tokens),
                    "metric": metric,
                    "dataset": dataset,
                    "value": float(value),
                    "unit": unit,
                }
                self._waiting.append({"seq": self._seq, **point})
                self._seq += 1
        self._send(None)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self._run_id is None:
            return
        status = "diverged" if self._bad_loss else ("finished" if state.global_step >= state.max_steps else None)
        self._send(status)
        if self._waiting:
            log.warning("%s: %d points did not reach %s", self._run_id, len(self._waiting), self._client.url)

    def _send(self, status: str | None) -> None:
        assert self._run_id is not None
        try:
            while len(self._waiting) > _BATCH:
                self._client.push_points(self._run_id, self._waiting[:_BATCH])
                del self._waiting[:_BATCH]
            self._client.push_points(self._run_id, self._waiting, status=status, reason=self._bad_loss or "")
            self._waiting.clear()
        except NoService as error:
            log.warning("%s", error)
            del self._waiting[:-_MOST_WAITING]
        except ServiceError as error:
            # Refused points would be refused again; training goes on, and the log says what is missing.
            log.warning("%s: %d points were refused: %s", self._run_id, len(self._waiting), error)
            self._waiting.clear()
