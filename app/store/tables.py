"""The tables. Times are ISO-8601 text in UTC, which sorts; JSON documents are text, written and read whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, MetaData, Text, TypeDecorator, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# 64 bits in every database: SQLite's INTEGER has them, and it numbers rows itself only for exactly that type.
WholeNumber = BigInteger().with_variant(Integer, "sqlite")
# Who acts without a key: someone on the machine itself, over loopback or with the command.
LOCAL = "local"


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
        corrections: JSON, column -> what it was and when it was corrected; of `control_id` also why it points nowhere.
        request_key, request_hash: the Idempotency-Key that a pushed run came with, and the SHA-256 of that request's body.
    """

    __tablename__ = "runs"
    __table_args__ = (
        # Listings go by id, newest first: within a cohort, and within what of it has one status.
        Index(None, "cohort", "run_id"),
        Index(None, "cohort", "status", "run_id"),
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
    corrections: Mapped[str] = mapped_column(default="", server_default="")


class RemovedRunRow(Base):
    """What is left of a run that was removed: why, and by what it is known when it comes again.

    Attributes:
        content_hash, request_key: as the run had them; an import or a push of the same is told that it was removed.
    """

    __tablename__ = "removed_runs"
    __table_args__ = (Index(None, "content_hash"), Index(None, "request_key"))

    run_id: Mapped[str] = mapped_column(primary_key=True)
    cohort: Mapped[str]
    name: Mapped[str]
    source: Mapped[str]
    reason: Mapped[str]
    content_hash: Mapped[str | None]
    request_key: Mapped[str | None]
    removed_at: Mapped[str] = mapped_column(default=utc_now)


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
        owner: the id of the key that launched it, or ``local`` where it was launched without one.
        engine: what runs it: ``local``, ``ray`` or ``exec``.
        handle: what its launcher calls the running attempt; None before it was submitted and after it ended.
        recommendation_id: the kept answer that it follows.
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
    recommendation_id: Mapped[str | None]
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
    owner: Mapped[str] = mapped_column(default=LOCAL, server_default=LOCAL)


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
    """One version of a cohort's guideline; `body` is `fitting.guideline.Guideline` as JSON. One a cohort is active.

    Attributes:
        outcome: what was decided when it was stored (`fitting.prequential.promotion.Outcome`), `reason` why.
        report: the scores behind that, JSON (`app.guidelines.report`).
        rows_hash: of the rows of its own runs, so that a later correction of one is known; None before revision 0006.
        is_pinned: activated by hand, and stays until released or until another one is activated by hand.
    """

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
    outcome: Mapped[str] = mapped_column(default="newest", server_default="newest")
    report: Mapped[str] = mapped_column(default="{}", server_default="{}")
    rows_hash: Mapped[str | None]
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    activated_at: Mapped[str | None]


class PredictionRow(Base):
    """What one predictor said of a run before it was seen: written once, and never again for the same version.

    What was observed follows the run table (a control's second seed moves it); the prediction does not. It names its run
    without a foreign key, as it outlives a run that is removed, marked void.

    Attributes:
        predictor: `guideline`, or a rule's name.
        guideline_id: the version; empty for rules.
        quantity: `delta_nats` of a grown run, `loss_nats` of one of a single size.
        design: JSON of what the prediction was about.
        family, control: labels of runs whose noise it shares.
        decision, growth_factor, growth_timing_tokens: what a rule wants at the run's target and compute.
        score: weighted interval score in nats; None where no number was said.
        void_reason: why it counts no more.
    """

    __tablename__ = "predictions"
    __table_args__ = (Index(None, "cohort", "created_at"),)

    cohort: Mapped[str] = mapped_column(ForeignKey("cohorts.name"), primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True)
    predictor: Mapped[str] = mapped_column(primary_key=True)
    guideline_id: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[str]
    design: Mapped[str]
    family: Mapped[str]
    control: Mapped[str]
    predicted: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    decision: Mapped[str | None]
    growth_factor: Mapped[float | None]
    growth_timing_tokens: Mapped[float | None]
    observed: Mapped[float]
    score: Mapped[float | None]
    void_reason: Mapped[str | None]
    created_at: Mapped[str] = mapped_column(default=utc_now)
    observed_at: Mapped[str] = mapped_column(default=utc_now)


class RefitRow(Base):
    """One refit that was asked for: several askings within a short time are one.

    Attributes:
        state: queued, running, succeeded, unchanged (nothing to fit anew), impossible (nothing that could be fitted), failed.
        detail: why it ended so, for people.
        owner: the service that looks after it.
    """

    __tablename__ = "refits"
    __table_args__ = (Index(None, "cohort", "id"), Index(None, "owner", "state"))

    id: Mapped[str] = mapped_column(primary_key=True)
    cohort: Mapped[str] = mapped_column(ForeignKey("cohorts.name"))
    state: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    guideline_id: Mapped[str | None]
    num_attempts: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str]
    asked_at: Mapped[str] = mapped_column(default=utc_now)
    started_at: Mapped[str | None]
    finished_at: Mapped[str | None]


class RecommendationRow(Base):
    """A kept answer: the question and the answer as JSON, and the guideline that was asked. Never changed."""

    __tablename__ = "recommendations"

    id: Mapped[str] = mapped_column(primary_key=True)
    cohort: Mapped[str | None]
    guideline_id: Mapped[str]
    guideline_version: Mapped[int]
    decision: Mapped[str]
    question: Mapped[str]
    answer: Mapped[str]
    created_at: Mapped[str] = mapped_column(default=utc_now)


class RequestRow(Base):
    """A request that came with an Idempotency-Key, and its answer as JSON where no row of its own keeps both."""

    __tablename__ = "requests"

    route: Mapped[str] = mapped_column(primary_key=True)
    request_key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    answer: Mapped[str]
    created_at: Mapped[str] = mapped_column(default=utc_now)


class KeyRow(Base):
    """An API key: a hash of its token, never the token. A revoked one stays, so that the audit log can name it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    scope: Mapped[str]
    token_hash: Mapped[str]
    created_at: Mapped[str] = mapped_column(default=utc_now)
    revoked_at: Mapped[str | None]


class AuditRow(Base):
    """One deed: who (the id of a key, or ``local``) did what to which job, run, cohort, guideline or key."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(WholeNumber, primary_key=True, autoincrement=True)
    time: Mapped[str] = mapped_column(default=utc_now)
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")


class MappingRow(Base):
    """Saved options of imports: what a project's logs mean, as JSON of the options of `POST /runs/import`."""

    __tablename__ = "mappings"

    name: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    updated_at: Mapped[str] = mapped_column(default=utc_now, onupdate=utc_now)
