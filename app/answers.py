"""What the client returns: the answer's JSON, a plain dict, whose fields are typed attributes too.

    job = client.job(job_id)
    job.state, job["state"], json.dumps(job)

An answer of a newer service keeps its additional fields as items. A test holds these types against the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from app.client import Event, Growthlaw

Item = TypeVar("Item")
Json = dict[str, Any]


class Answer(dict[str, Any]):
    """A JSON object; `parts` names the fields that are such objects themselves, or lists of them."""

    _client: Growthlaw
    parts: ClassVar[Mapping[str, type[Answer]]] = {}

    def __init__(self, values: Mapping[str, Any], client: Growthlaw) -> None:
        super().__init__(values)
        object.__setattr__(self, "_client", client)
        for name, kind in self.parts.items():
            value = self.get(name)
            if isinstance(value, list):
                self[name] = [kind(one, client) for one in value]
            elif value is not None:
                self[name] = kind(value, client)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is what the service said, and is not changed here")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(f"this {type(self).__name__} has no {name!r}; it has {', '.join(self)}") from None


class Page(Generic[Item]):
    """One page of a listing. Iterating gives its items and then those of all pages behind it, asked for as they are needed.

    `json` is the page as it came, and `page["data"]` the same as `page.data`.
    """

    def __init__(
        self, path: str, query: Mapping[str, Any], kind: Callable[[Json, Growthlaw], Item], client: Growthlaw
    ) -> None:
        self.json = client._call("GET", path, query=query)
        self.data: list[Item] = [kind(one, client) for one in self.json["data"]]
        self.json["data"] = self.data
        self.has_more: bool = self.json["has_more"]
        self.next: str | None = self.json["next"]
        self._path, self._query, self._kind, self._client = path, dict(query), kind, client

    def __getitem__(self, name: str) -> Any:
        return self.json[name]

    def __iter__(self) -> Iterator[Item]:
        page = self
        while True:
            yield from page.data
            if not page.has_more:
                return
            page = Page(self._path, self._query | {"after": page.next}, self._kind, self._client)


class Progress(Answer):
    phase: str
    tokens: int
    compute_flops: float
    total_flops: float
    fraction: float
    train_loss_nats: float
    validation_loss_nats: float | None
    tokens_per_second: float | None
    mfu: float | None
    peak_memory_bytes: float | None


class Job(Answer):
    """A job, and what can be asked of it. What is asked gives the job as it is then; this one stays as it was."""

    id: str
    kind: str
    name: str
    role: str
    group_id: str | None
    run_id: str | None
    cohort: str | None
    state: str
    wish: str | None
    reason: str
    cause: str | None
    priority: int
    engine: str
    num_processes: int
    num_nodes: int
    recommendation_id: str | None
    num_attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    heartbeat_at: str | None
    owner: str

    def now(self) -> JobDetail:
        """The job as it is now."""
        return self._client.job(self.id)

    def events(self, last_event_id: str | None = None) -> Iterator[Event]:
        """As `Growthlaw.events`."""
        return self._client.events(self.id, last_event_id)

    def wait(self, *, timeout_seconds: float | None = None) -> JobDetail:
        """As `Growthlaw.wait`."""
        return self._client.wait(self.id, timeout_seconds=timeout_seconds)

    def cancel(self) -> JobDetail:
        return self._client.cancel(self.id)

    def pause(self) -> JobDetail:
        return self._client.pause(self.id)

    def resume(self) -> JobDetail:
        return self._client.resume(self.id)

    def retry(self) -> JobDetail:
        return self._client.retry(self.id)

    def export(self, url: str, *, source: str = "final") -> Job:
        """As `Growthlaw.export`."""
        return self._client.export(self.id, url, source=source)


class ListedJob(Job):
    parts: ClassVar[Mapping[str, type[Answer]]] = {"progress": Progress}
    progress: Progress | None


class JobDetail(ListedJob):
    run_dir: str
    last_message: str


class StartedJob(Job):
    compute_flops: float
    tokens: int
    warnings: list[str]


class Arm(Answer):
    parts: ClassVar[Mapping[str, type[Answer]]] = {"job": Job}
    role: str
    job: Job
    compute_flops: float
    tokens: int


class Growth(Answer):
    parts: ClassVar[Mapping[str, type[Answer]]] = {"arms": Arm}
    group_id: str
    budget_flops: float
    arms: list[Arm]
    warnings: list[str]


class Run(Answer):
    """The header of one run (units: tokens, FLOPs, nats; sizes in non-embedding parameters)."""

    run_id: str
    cohort: str
    source: str
    name: str
    status: str
    target_params: float
    num_target_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    intermediate_size: int | None
    vocab_size: int | None
    context_length: int | None
    base_params: float | None
    num_base_layers: int | None
    growth_factor: float
    growth_timing_tokens: float
    grown_tokens: float
    operator: str | None
    order: str | None
    optimizer: str | None
    optimizer_state_policy: str | None
    peak_lr: float | None
    base_peak_lr: float | None
    lr_selection: str | None
    schedule: str | None
    warmup_tokens: float | None
    planned_tokens: float | None
    decay_tokens: float | None
    is_final: bool
    batch_tokens: float | None
    tokenizer: str | None
    corpus: str | None
    unique_tokens: float | None
    init_seed: int | None
    data_seed: int | None
    trunk_id: str | None
    control_id: str | None
    parent_run_id: str | None
    base_flops_per_token: float | None
    target_flops_per_token: float | None
    compute_flops: float | None
    final_loss: float | None
    created_at: str
    engine_numerics_version: int | None
    reason: str
    wasted_flops: float
    corrections: list[Json]

    def points(self, metric: str | None = None) -> list[Point]:
        """As `Growthlaw.points`."""
        return self._client.points(self.run_id, metric)


class Point(Answer):
    """One measured value; `tokens` counts inside the phase, `compute_flops` over the whole run."""

    seq: int
    phase: str
    tokens: int
    compute_flops: float
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


class Guideline(Answer):
    id: str
    cohort: str
    version: int
    is_active: bool
    is_pinned: bool
    outcome: str
    num_runs: int
    data_hash: str
    reason: str
    created_at: str
    activated_at: str | None


class GuidelineDetail(Guideline):
    report: Json
    scores: Json
    body: Json


class Refit(Answer):
    id: str
    cohort: str
    state: str
    reason: str
    detail: str
    guideline_id: str | None
    num_attempts: int
    asked_at: str
    started_at: str | None
    finished_at: str | None


class Cohort(Answer):
    name: str
    decision_metric: str
    decision_dataset: str
    num_runs: int
    guideline_id: str | None
    recipe: Json
    created_at: str


class Model(Answer):
    params: float
    num_layers: int | None
    flops_per_token: float
    hidden_size: int | None
    connection_rate: float | None


class Flops(Answer):
    convention: str
    base: float | None
    grown: float | None
    total: float | None
    scratch: float


class Expected(Answer):
    """Grown against scratch at equal FLOPs; intervals are 80%."""

    basis: str
    delta_nats: float | None
    delta_interval: list[float] | None
    speedup: float | None
    speedup_interval: list[float] | None
    saved_target_tokens: float | None
    chance_growth_helps: float | None


class FixedSize(Answer):
    params: float
    num_layers: int | None
    expected_loss_nats: float | None


class Support(Answer):
    grade: str
    distances: dict[str, float | None]
    reason: str


class LossQuantiles(Answer):
    p10: float
    p50: float
    p90: float


class Regret(Answer):
    """The largest in any draw; `flops` is what scratch would need to make up for it."""

    nats: float
    flops: float | None
    gpu_hours: float | None
    num_draws: int


class ArmOutcome(Answer):
    """One row of the decision; all rows cost the same compute."""

    parts: ClassVar[Mapping[str, type[Answer]]] = {"loss_nats": LossQuantiles, "worst_regret": Regret}
    arm: str
    params: float | None
    num_layers: int | None
    growth_factor: float | None
    growth_timing_tokens: float | None
    tokens: float | None
    base_flops: float | None
    compute_flops: float | None
    gpu_hours: float | None
    paid_base_gpu_hours: float | None
    loss_nats: LossQuantiles | None
    no_loss_reason: str | None
    chance_to_beat_scratch: float | None
    no_chance_reason: str | None
    worst_regret: Regret | None


class Pilot(Answer):
    sentence: str
    target_params: float
    token_budget: float
    num_runs: int
    compute_flops: float
    gpu_hours: float | None


class Recommendation(Answer):
    """The first fields of the answer of `POST /recommend`; what needs fitted laws and every deeper part stays an item."""

    parts: ClassVar[Mapping[str, type[Answer]]] = {
        "base_model": Model, "target_model": Model, "flops": Flops, "expected": Expected, "best_fixed_size": FixedSize,
        "support": Support, "arms": ArmOutcome, "pilot": Pilot,
    }  # fmt: skip
    guideline: Json
    decision: str
    growth_factor: float | None
    growth_timing_tokens: float | None
    growth_timing_range: list[float] | None
    order: str | None
    base_model: Model | None
    target_model: Model
    grown_tokens: float | None
    flops: Flops
    expected: Expected
    best_fixed_size: FixedSize | None
    target_oversized: bool | None
    by_accounting: dict[str, Json]
    support: Support
    alternatives: list[Json]
    warnings: list[str]
    arms: list[ArmOutcome]
    pilot: Pilot | None


class KeptSummary(Answer):
    id: str
    created_at: str
    cohort: str | None
    guideline_id: str
    guideline_version: int
    decision: str


class KeptRecommendation(KeptSummary):
    question: Json
    answer: Json
    newer: Json | None


class Key(Answer):
    id: str
    name: str
    scope: str
    created_at: str
    revoked_at: str | None


class NewKey(Key):
    token: str


class Deed(Answer):
    """One entry of the audit log."""

    id: int
    time: str
    actor: str
    actor_name: str
    action: str
    subject: str
    detail: str
