"""Starting runs: what the machine and the corpus must have for them, and that one request starts them once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from typing import Annotated

from fastapi import Depends, Header
from sqlalchemy.exc import IntegrityError

from app.api.access import Caller, CallerDep
from app.api.problems import Problem
from app.api.run_bodies import StartBody
from app.api.service import Service
from app.contract import Spec
from app.corpus.shards import Manifest
from app.jobs.design import total_tokens
from app.jobs.launchers.base import Work
from app.jobs.queue import CohortMismatch, enqueue_arms
from app.store import jobs as job_store
from app.store.tables import JobRow
from fitting.flops import non_embedding_params


def _own_key(
    caller: CallerDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, description="the same key and body start nothing twice")
    ] = None,
) -> str | None:
    return None if idempotency_key is None else caller.own(idempotency_key)


IdempotencyKey = Annotated[str | None, Depends(_own_key)]

# fp32 weights with two moments: a checkpoint. Two are kept while a run trains, and two exports of the weights.
BYTES_A_PARAMETER_SAVED = 4 * 3
BYTES_A_PARAMETER = 2 * BYTES_A_PARAMETER_SAVED + 4 * 2
BYTES_OF_LOGS = 50_000_000
_LATER_FIELDS = ("engine", "num_processes", "min_processes", "num_nodes")


def started_before(service: Service, body: StartBody, idempotency_key: str | None) -> dict[str, JobRow]:
    """role -> job of an earlier request with the same key and body.

    Raises:
        Problem: the key came with another body.
    """
    if idempotency_key is None:
        return {}
    with service.database.read() as session:
        rows = job_store.find_by_request_key(session, idempotency_key)
    if any(row.request_hash != _request_hash(body) for row in rows):
        raise Problem(409, "this Idempotency-Key came with another body before; send the same body, or another key")
    return {row.role: row for row in rows}


def start_runs(
    service: Service,
    specs: Mapping[str, Spec],
    manifest: Manifest,
    body: StartBody,
    idempotency_key: str | None,
    caller: Caller,
    *,
    control_run_id: str | None = None,
) -> dict[str, JobRow]:
    """Queue runs (role -> spec) as one group, which is the caller's.

    Raises:
        InputError: no worker can ever run them; nothing is queued.
        Problem: this machine lacks the disk, or the cohort holds runs of another recipe; nothing is queued.
    """
    _check_workers(service, specs.values(), body)
    _check_disk(service, specs.values())
    try:
        return enqueue_arms(
            service.database,
            service.settings.runs_dir,
            specs,
            manifest,
            priority=body.priority,
            request_key=idempotency_key,
            request_hash=_request_hash(body),
            control_run_id=control_run_id,
            engine=body.engine,
            num_nodes=body.num_nodes,
            owner=caller.id,
        )
    except CohortMismatch as error:
        raise Problem.field("/cohort", str(error), status=409) from None
    except IntegrityError:
        # The same request arrived twice at once, and the other one was first.
        return started_before(service, body, idempotency_key)


def epoch_warnings(specs: Iterable[Spec], manifest: Manifest) -> list[str]:
    available = manifest.splits["train"].num_tokens
    return [
        f"{spec.name} reads {total_tokens(spec):,} tokens of a corpus of {available:,}: "
        f"{total_tokens(spec) / available:.1f} epochs, so some text is seen again"
        for spec in specs
        if total_tokens(spec) > available
    ]


def _request_hash(body: StartBody) -> str:
    values = body.model_dump(mode="json")
    # Bodies without these are as old as keys that were sent before there was a choice: both must hash alike.
    for name in _LATER_FIELDS:
        if values[name] == StartBody.model_fields[name].default:
            del values[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_disk(service: Service, specs: Iterable[Spec]) -> None:
    needed = sum(
        (BYTES_A_PARAMETER + BYTES_A_PARAMETER_SAVED * len(spec.keep_checkpoints_at_tokens))
        * (non_embedding_params(spec.model) + 2 * spec.model.vocab_size * spec.model.hidden_size)
        + BYTES_OF_LOGS
        for spec in specs
    )
    free = shutil.disk_usage(service.settings.runs_dir).free
    if free < needed:
        raise Problem(
            507,
            f"{service.settings.runs_dir} is on a disk with {free / 1e9:.2f} GB free, but checkpoints and exports "
            f"of this design need about {needed / 1e9:.2f} GB; free some space, or serve another --data-dir or --runs-dir",
        )


def _check_workers(service: Service, specs: Iterable[Spec], body: StartBody) -> None:
    for spec in specs:
        service.supervisor.check(
            body.engine,
            Work(
                job_id=spec.run_id,
                kind="growth",
                run_dir=service.settings.runs_dir / spec.run_id,
                num_processes=spec.num_processes,
                num_nodes=body.num_nodes,
                device=spec.device,
            ),
        )
