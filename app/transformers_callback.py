"""Pushes a run of transformers' Trainer to a Growthlaw service while it trains.

    Trainer(..., callbacks=[GrowthlawCallback(cohort="mine", name="8-layers", corpus="web", tokenizer="bpe-1024")])

Set ``include_num_input_tokens_seen="all"``, or give ``tokens_a_step``: tokens are never guessed. A run that goes on from a
checkpoint goes on here too, and what it repeats replaces what it repeats. A service that does not answer, at the start, on the
way or while it is restarted, never stops a training: its points are kept and sent once it is back, each stored once whatever
became of the answer, and the end waits a while for it. What is missing even then is said in a warning. Only a refusal at the
start (a cohort of another recipe, a missing field) is an error.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from typing import Any

from transformers import TrainerCallback

from app.client import Growthlaw, NoService, Refused, ServiceError

log = logging.getLogger(__name__)

_EVALUATION = re.compile(r"eval_(?:(?P<dataset>.+)_)?loss")
_NAMES = {"loss": ("train_loss", "nats"), "learning_rate": ("learning_rate", ""), "grad_norm": ("grad_norm", "")}
# Points of one request, and points that wait for a service at most.
_BATCH = 5_000
_MOST_WAITING = 200_000
# Of one request; a service that hangs must not hold up every step.
_TIMEOUT_SECONDS = 10.0
# After a try that found no service the next waits so long, twice as long each time.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 300.0
# Answers of a service that is being restarted or is busy: the same request may be taken later.
_LATER = (408, 429, 502, 503, 504)


class GrowthlawCallback(TrainerCallback):
    """
    Args:
        cohort, name: where the run belongs, and what it is called there.
        decision_dataset: whose ``eval_loss`` the cohort is judged by; ``validation`` where the Trainer has one set.
        tokens_a_step: of the whole job; the Trainer's own count where None.
        client: a connection; one to ``GROWTHLAW_URL`` where None.
        final_wait_seconds: how long the end waits for a service that is away.
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
        final_wait_seconds: float = 60.0,
        **facts: Any,
    ) -> None:
        self._body = {"cohort": cohort, "name": name, "decision_dataset": decision_dataset} | facts
        self._tokens_a_step = tokens_a_step
        # Points that are not taken wait for the next log: training stands still for no service.
        self._client = client or Growthlaw(timeout_seconds=_TIMEOUT_SECONDS, retry_seconds=0)
        self._final_wait_seconds = final_wait_seconds
        self._waiting: list[dict[str, Any]] = []
        self._is_on = False
        self._pause_seconds, self._next_try = _FIRST_PAUSE_SECONDS, 0.0
        self._num_lost = 0
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
        self._is_on = True
        try:
            self._open()
        except ServiceError as error:
            # A refusal is better told now than after the training.
            if not _is_away(error):
                raise
            self._put_off(error)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if not self._is_on or not logs or "train_loss" in logs:  # the last row sums the run up
            return
        tokens = state.num_input_tokens_seen if self._tokens_a_step is None else state.global_step * self._tokens_a_step
        for name, value in logs.items():
            metric, unit, dataset = *_NAMES.get(name, ("", "")), ""
            if evaluation := _EVALUATION.fullmatch(name):
                metric, unit, dataset = "validation_loss", "nats", evaluation["dataset"] or "validation"
            if not metric:
                continue
            is_number = math.isfinite(float(value))
            if metric.endswith("_loss"):
                self._bad_loss = None if is_number else f"{name} was no number at step {state.global_step}"
            if is_number:
                point = {
                    "tokens": int(tokens),
                    "metric": metric,
                    "dataset": dataset,
                    "value": float(value),
                    "unit": unit,
                }
                self._waiting.append(point | {"seq": self._seq})
                self._seq += 1
        if time.monotonic() >= self._next_try:
            self._send(None)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not self._is_on:
            return
        status = "diverged" if self._bad_loss else ("finished" if state.global_step >= state.max_steps else None)
        deadline = time.monotonic() + self._final_wait_seconds
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        while not self._send(status) and time.monotonic() < deadline:
            time.sleep(min(self._pause_seconds, max(0.0, deadline - time.monotonic())))
        if lost := self._num_lost + len(self._waiting):
            log.warning("%s: %d points did not reach %s", self._run_id or self._body["name"], lost, self._client.url)

    def _open(self) -> None:
        """Open the run, or find it where it was opened before, and number the points that wait behind its last."""
        key = hashlib.sha256(f"{self._body['cohort']}\0{self._body['name']}".encode()).hexdigest()
        opened = self._client.open_run(self._body, idempotency_key=f"transformers-{key}")
        self._run_id, self._seq = opened["run"]["run_id"], opened["next_seq"]
        for point in self._waiting:
            point["seq"] = self._seq
            self._seq += 1

    def _send(self, status: str | None) -> bool:
        """Send what waits, and with ``status`` the run's end; False where there is no service, and all of it still waits."""
        try:
            if self._run_id is None:
                self._open()
            assert self._run_id is not None
            while len(self._waiting) > _BATCH:
                self._client.push_points(self._run_id, self._waiting[:_BATCH])
                del self._waiting[:_BATCH]
            self._client.push_points(self._run_id, self._waiting, status=status, reason=self._bad_loss or "")
        except ServiceError as error:
            if _is_away(error):
                self._put_off(error)
                return False
            # Refused points would be refused again; training goes on, and the log says what is missing.
            log.warning("%s: %d points were refused: %s", self._run_id, len(self._waiting), error)
            self._num_lost += len(self._waiting)
        self._waiting.clear()
        self._pause_seconds, self._next_try = _FIRST_PAUSE_SECONDS, 0.0
        return True

    def _put_off(self, error: ServiceError) -> None:
        log.warning("%s; %d points wait", error, len(self._waiting))
        self._next_try = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        self._num_lost += max(0, len(self._waiting) - _MOST_WAITING)
        del self._waiting[:-_MOST_WAITING]


def _is_away(error: ServiceError) -> bool:
    return isinstance(error, NoService) or (isinstance(error, Refused) and error.status in _LATER)
