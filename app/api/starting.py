"""Starting runs: what the machine and the corpus must have for them, and that one request starts them once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping

from sqlalchemy.exc import IntegrityError

from app.api.access import Caller
from app.api.idempotency import check_same_body, request_hash
from app.api.problems import Problem
from app.api.run_bodies import StartBody
from app.api.service import Service
from app.contract import Spec
from app.corpus.shards import Manifest
from app.jobs.design import total_tokens
from app.jobs.launchers.base import Work
from app.jobs.queue import CohortMismatch, enqueue_arms
from app.store import jobs as job_store
from app.store import recommendations as recommendation_store
from app.store.recommendations import MOST_RECENT, Answered
from app.store.tables import JobRow
from fitting.flops import non_embedding_params

# fp32 weights with two moments: a checkpoint. Two are kept while a run trains, and two exports of the weights.
BYTES_A_PARAMETER_SAVED = 4 * 3
BYTES_A_PARAMETER = 2 * BYTES_A_PARAMETER_SAVED + 4 * 2
BYTES_OF_LOGS = 50_000_000
# Bodies without these are as old as keys that were sent before there was a choice: both must hash alike.
_LATER_FIELDS = ("engine", "num_processes", "min_processes", "num_nodes", "recommendation_id")


def started_before(service: Service, body: StartBody, idempotency_key: str | None) -> dict[str, JobRow]:
    """role -> job of an earlier request with the same key and body.

    Raises:
        Problem: the key came with another body.
    """
    if idempotency_key is None:
        return {}
    with service.database.read() as session:
        rows = job_store.find_by_request_key(session, idempotency_key)
    for row in rows:
        check_same_body(row.request_hash, request_hash(body, later_fields=_LATER_FIELDS))
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
    follows = _followed(service, body.recommendation_id)
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
            request_hash=request_hash(body, later_fields=_LATER_FIELDS),
            follows=follows,
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


def _followed(service: Service, recommendation_id: str | None) -> str | Answered | None:
    """The answer that the runs follow: the id of a kept one, or one of the last that is to be kept with them.

    Raises:
        Problem: there is none of this id.
    """
    if recommendation_id is None:
        return None
    with service.database.read() as session:
        if recommendation_store.get_recommendation(session, recommendation_id) is not None:
            return recommendation_id
    recent = service.recent_answers.get(recommendation_id)
    if recent is None:
        raise Problem.field(
            "/recommendation_id",
            f"no answer is kept under {recommendation_id!r}, and it is none of the last {MOST_RECENT}; ask again, with "
            "keep: true where the job starts later",
        )
    return recent


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
