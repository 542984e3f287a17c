"""The tables. Times are ISO-8601 text in UTC, which sorts; JSON documents are text, written and read whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, MetaData, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# 64 bits in every database: SQLite's INTEGER has them, and it numbers rows itself only for exactly that type.
WholeNumber = BigInteger().with_variant(Integer, "sqlite")


class PlainText(TypeDecorator[str]):
    """Text that every database takes.

    The end of a log that a crash tore may hold NUL characters, which PostgreSQL refuses, and JSON may hold halves of
    surrogate pairs, which are no UTF-8: neither may keep a job from ending.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        if value is None or (value.isascii() and "\x00" not in value):
            return value
        return value.replace("\x00", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: PlainText, int: WholeNumber}  # noqa: RUF012 - SQLAlchemy's own protocol


class CohortRow(Base):
    """Runs whose losses may be compared: a user's name and the recipe that every run of it must share."""

    __tablename__ = "cohorts"

    name: Mapped[str] = mapped_column(primary_key=True)
    recipe: Mapped[str]
    recipe_hash: Mapped[str]
    decision_metric: Mapped[str]
    decision_dataset: Mapped[str]
    created_at: Mapped[str] = mapped_column(default=utc_now)


class RunRow(Base):
    """The canonical header of one run: the columns of `fitting.table.COLUMNS`, and why it ended if it went wrong.

    Attributes:
        wasted_flops: trained, then rolled back by a restart or a fork; in no other number of the run.
        provenance: of a run from elsewhere, JSON: its files with their SHA-256, and how its log was read.
        content_hash: of an imported log, so that a second import is known; None for all other runs.
        request_key, request_hash: the Idempotency-Key that a pushed run came with, and the SHA-256 of that request's body.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "cohort", "status"),
        Index(None, "content_hash", unique=True),
        Index(None, "request_key", unique=True),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    cohort: Mapped[str] = mapped_column(ForeignKey("cohorts.name"))
    source: Mapped[str]
    name: Mapped[str]
    status: Mapped[str]
    target_params: Mapped[float]
    num_target_layers: Mapped[int | None]
    hidden_size: Mapped[int | None]
    num_heads: Mapped[int | None]
    num_kv_heads: Mapped[int | None]
    intermediate_size: Mapped[int | None]
    vocab_size: Mapped[int | None]
    context_length: Mapped[int | None]
    base_params: Mapped[float | None]
    num_base_layers: Mapped[int | None]
    growth_factor: Mapped[float]
    growth_timing_tokens: Mapped[float]
    grown_tokens: Mapped[float]
    operator: Mapped[str | None]
    order: Mapped[str | None]
    optimizer: Mapped[str | None]
    optimizer_state_policy: Mapped[str | None]
    peak_lr: Mapped[float | None]
    base_peak_lr: Mapped[float | None]
    lr_selection: Mapped[str | None]
    schedule: Mapped[str | None]
    warmup_tokens: Mapped[float | None]
    planned_tokens: Mapped[float | None]
    decay_tokens: Mapped[float | None]
    is_final: Mapped[bool]
    batch_tokens: Mapped[float | None]
    tokenizer: Mapped[str | None]
    corpus: Mapped[str | None]
    unique_tokens: Mapped[float | None]
    init_seed: Mapped[int | None]
    data_seed: Mapped[int | None]
    trunk_id: Mapped[str | None]
    control_id: Mapped[str | None]
    parent_run_id: Mapped[str | None]
    base_flops_per_token: Mapped[float | None]
    target_flops_per_token: Mapped[float | None]
    compute_flops: Mapped[float | None]
    final_loss: Mapped[float | None]
    created_at: Mapped[str] = mapped_column(default=utc_now)
    engine_numerics_version: Mapped[int | None]
    reason: Mapped[str] = mapped_column(default="")
    wasted_flops: Mapped[float] = mapped_column(default=0.0, server_default="0")
    provenance: Mapped[str] = mapped_column(default="", server_default="")
    content_hash: Mapped[str | None]
    request_key: Mapped[str | None]
    request_hash: Mapped[str | None]


class PointRow(Base):
    """One measured value of a run, as its engine wrote it; (run_id, seq) arrives once whatever restarts."""

    __tablename__ = "points"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str]
    tokens: Mapped[int] = mapped_column(BigInteger)
    compute_flops: Mapped[float]
    metric: Mapped[str]
    dataset: Mapped[str]
    value: Mapped[float]
    unit: Mapped[str]
    time: Mapped[str]


class JobRow(Base):
    """One process to be run: a growth job or a corpus preparation.

    Attributes:
        wish: what a user asked of a running one.
        cause: why a failed one failed, as :mod:`app.jobs.outcome` tells causes apart.
        request_key, request_hash: the Idempotency-Key it came with, and the SHA-256 of that request's body.
        engine: what runs it: ``local``, ``ray`` or ``exec``.
        handle: what its launcher calls the running attempt; None before it was submitted and after it ended.
        lease_owner, heartbeat_at: the service that looks after the running job, and when it last saw it alive; where
            that is too long ago another service takes it over.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "priority", "id"), UniqueConstraint("request_key", "role"))

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    role: Mapped[str]
    group_id: Mapped[str | None]
    run_id: Mapped[str | None]
    cohort: Mapped[str | None]
    control_run_id: Mapped[str | None]
    state: Mapped[str]
    wish: Mapped[str | None]
    reason: Mapped[str] = mapped_column(default="")
    cause: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0)
    engine: Mapped[str] = mapped_column(default="local", server_default="local")
    device: Mapped[str] = mapped_column(default="auto", server_default="auto")
    num_processes: Mapped[int] = mapped_column(default=1, server_default="1")
    num_nodes: Mapped[int] = mapped_column(default=1, server_default="1")
    run_dir: Mapped[str]
    spec: Mapped[str]
    request_key: Mapped[str | None]
    request_hash: Mapped[str | None]
    num_attempts: Mapped[int] = mapped_column(default=0)
    num_deaths: Mapped[int] = mapped_column(default=0)
    handle: Mapped[str | None]
    lease_owner: Mapped[str | None]
    heartbeat_at: Mapped[str | None]
    metrics_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[str] = mapped_column(default=utc_now)
    started_at: Mapped[str | None]
    finished_at: Mapped[str | None]


class JobEventRow(Base):
    """The story of a job: state changes by the service, everything else by its process."""

    __tablename__ = "job_events"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[int] = mapped_column(WholeNumber, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    time: Mapped[str]
    event: Mapped[str]
    message: Mapped[str]
    phase: Mapped[str | None]
    tokens: Mapped[int | None] = mapped_column(BigInteger)


class GuidelineRow(Base):
    """One version of a cohort's guideline; `body` is `fitting.guideline.Guideline` as JSON. One a cohort is active."""

    __tablename__ = "guidelines"
    __table_args__ = (UniqueConstraint("cohort", "version"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    cohort: Mapped[str] = mapped_column(ForeignKey("cohorts.name"))
    version: Mapped[int]
    is_active: Mapped[bool]
    num_runs: Mapped[int]
    data_hash: Mapped[str]
    reason: Mapped[str]
    body: Mapped[str]
    created_at: Mapped[str] = mapped_column(default=utc_now)


class MappingRow(Base):
    """Saved options of imports: what a project's logs mean, as JSON of the options of `POST /runs/import`."""

    __tablename__ = "mappings"

    name: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    updated_at: Mapped[str] = mapped_column(default=utc_now, onupdate=utc_now)
