"""`POST /plan`: what to run next, or whether a pilot pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import RequestBody
from app.api.planned_runs import fresh_seeds, job_body, targets_of, templates_of
from app.api.problems import Problem, responses
from app.api.questions import QuestionBody
from app.api.recommend import find_guideline
from app.api.service import Service, ServiceDep
from app.contract import Spec
from app.store import runs as run_store
from app.store.runs import RunFilter
from app.sweep.bodies import request_key
from fitting.conventions import SAME_SIZE
from fitting.errors import InputError
from fitting.flops import Shape
from fitting.guideline import Guideline
from fitting.layers import Target
from fitting.planning import Decision, Experiment, NextRuns, decision_of, next_runs
from fitting.recommendation import Hardware, Request
from fitting.recommendation.support import grade_at
from fitting.rules.base import quantity

router = APIRouter(tags=["recommend"])

# Token budgets of the questions that are meant where none is named, as multiples of the longest that a size has had.
_BUDGETS_AHEAD = (1.0, 4.0)
_MOST_RUNS = 100_000


class PlanBody(RequestBody):
    """What runs may cost, and what they are for.

    Without `decision` they are for every question that the guideline is there for: each size of the cohort at its longest
    budget and four times beyond. With one they must pay: they save more FLOPs on that target than they cost, or none is named.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"cohort": "demo", "flops_budget": 2e13, "max_steps": 3}]}
    )

    cohort: str = Field(max_length=64)
    flops_budget: float = Field(gt=0, allow_inf_nan=False, description="of all runs together, in FLOPs")
    decision: QuestionBody | None = Field(default=None, description="the question, as for POST /recommend")
    guideline: str = Field(default="active", max_length=64, description="a version of the cohort's guideline")
    max_steps: int = Field(default=5, ge=1, le=20)
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the simulation")


class AskedAbout(BaseModel):
    """A question that the runs are for, and what would be done today."""

    target_params: float
    token_budget: float
    decision: Literal["grow", "scratch", "smaller"]
    regret_nats: float = Field(description="expected loss above the best arm")


class PlannedRun(BaseModel):
    """One run; `job` is the body of POST /jobs that starts it, null where no run of its width was trained here, and `key` the
    Idempotency-Key under which it starts once, from a page, a script or `growthlaw sweep run`."""

    kind: Literal["scratch", "fixed_size", "grown"]
    params: float
    num_layers: int | None
    growth_factor: float | None
    num_base_layers: int | None
    growth_timing_tokens: float | None
    tokens: float = Field(description="of the last phase")
    token_budget: float = Field(description="of the target from scratch at these FLOPs")
    compute_flops: float
    job: dict[str, Any] | None
    key: str | None


class Step(BaseModel):
    """Runs to make together, and what they are expected to bring when all steps before have been made."""

    runs: list[PlannedRun]
    cost_flops: float
    regret_before_nats: float
    regret_after_nats: float
    change_chance: float = Field(description="share of possible results after which a decision changes")
    why: str


class PlanAnswer(BaseModel):
    """What to run next. `saved_flops` prices the fall of regret in scratch training of the targets."""

    guideline: dict[str, Any]
    sentence: str
    decisions: list[AskedAbout]
    steps: list[Step]
    regret_now_nats: float
    regret_after_nats: float
    cost_flops: float
    saved_flops: float
    saved_flops_interval: tuple[float, float]
    net_flops: float
    num_weighed: int = Field(description="runs and bundles of runs that were weighed")


@router.post("/plan", summary="What to run next, or whether a pilot pays", responses=responses(422))
def post_plan(body: Annotated[PlanBody, Body()], service: ServiceDep) -> PlanAnswer:
    """What to run next: ready runs with the largest fall of expected regret for their price, or that no pilot pays."""
    guideline = _guideline(body, service)
    with service.database.read() as session:
        runs = run_store.list_runs(session, RunFilter(cohort=body.cohort, status="finished"), limit=_MOST_RUNS)
        templates = templates_of(session, runs)
    targets = targets_of(runs)
    if not targets:
        raise Problem.field(
            "/cohort",
            f"no run of {body.cohort!r} says its whole shape, so none can be planned; give the runs their shapes",
        )
    asked = None if body.decision is None else body.decision.to_question(service.settings.checkpoints_dir)
    if asked is not None:
        if not isinstance(asked, Request):
            raise Problem.field(
                "/decision/target_loss", "a plan is for a budget; give the decision one, or ask POST /recommend"
            )
        try:
            decisions = [decision_of(asked, guideline)]
        except InputError as error:
            raise Problem.field("/decision", str(error)) from None
        # A target of its own width may be trained too, if it is within reach.
        targets = _with(targets, asked.target)
    else:
        decisions = _ahead(guideline, targets)
    plan = next_runs(
        guideline, decisions, targets=targets, flops_budget=body.flops_budget, must_pay=asked is not None,
        max_steps=body.max_steps, seed=body.seed,
    )  # fmt: skip
    hardware = None if asked is None else asked.hardware
    seeds = _seeds(plan, fresh_seeds(runs))
    return PlanAnswer(
        guideline=guideline.summary(),
        sentence=_sentence(plan, hardware) if asked is not None and plan.steps else plan.note,
        decisions=[_asked_about(*one) for one in zip(decisions, plan.regrets_now_nats, strict=True)],
        steps=[
            Step(
                runs=[_planned(run, templates, next(seeds)) for run in step.runs], cost_flops=step.cost_flops,
                regret_before_nats=step.regret_before_nats, regret_after_nats=step.regret_after_nats,
                change_chance=step.change_chance, why=step.why,
            )
            for step in plan.steps
        ],
        regret_now_nats=plan.regret_now_nats,
        regret_after_nats=plan.regret_after_nats,
        cost_flops=plan.cost_flops,
        saved_flops=plan.saved_flops,
        saved_flops_interval=plan.saved_flops_interval,
        net_flops=plan.net_flops,
        num_weighed=plan.num_weighed,
    )  # fmt: skip


def _guideline(body: PlanBody, service: Service) -> Guideline:
    if body.decision is not None and body.decision.cohort not in (None, body.cohort):
        raise Problem.field(
            "/decision/cohort",
            f"cohort is {body.decision.cohort!r}, but the runs are for {body.cohort!r}; leave it out of the decision",
        )
    guideline = find_guideline(service, body.guideline, body.cohort)
    if guideline.cohort != body.cohort:
        raise Problem.field(
            "/guideline",
            f"{guideline.id} is no guideline of cohort {body.cohort!r}; use 'active' once runs of it are stored, or one "
            f"of GET /guidelines?cohort={body.cohort}",
        )
    return guideline


def _ahead(guideline: Guideline, targets: list[Target]) -> list[Decision]:
    """Every size at its longest budget and beyond, as far as the guideline answers there; equally weighted."""
    requests = []
    for target in targets:
        own = [one.tokens for one in guideline.controls if abs(one.params / target.params - 1) < SAME_SIZE]
        for multiple in _BUDGETS_AHEAD if own else ():
            request = Request(target_shape=target.shape, token_budget=multiple * max(own))
            if grade_at(request, guideline, None, request.token_budget) != "unsupported":
                requests.append(request)
    if not requests:
        raise Problem.field(
            "/cohort", "no target of it was trained from scratch, so there is no question to plan for; name a decision"
        )
    return [decision_of(request, guideline, weight=1 / len(requests)) for request in requests]


def _with(targets: list[Target], asked: Target) -> list[Target]:
    if asked.shape is None or any(target.shape == asked.shape for target in targets):
        return targets
    return [*targets, asked]


def _asked_about(decision: Decision, regret_nats: float) -> AskedAbout:
    return AskedAbout(
        target_params=decision.request.target.params,
        token_budget=decision.request.token_budget,
        decision=decision.arms[decision.chosen].kind,
        regret_nats=regret_nats,
    )


def _seeds(plan: NextRuns, fresh: Iterator[int]) -> Iterator[int]:
    """One for each run of the plan in its order: the same for all designs, the next one where a design is planned again."""
    offered: list[int] = []
    planned: Counter[tuple[object, ...]] = Counter()
    for run in (run for step in plan.steps for run in step.runs):
        if planned[run.key] == len(offered):
            offered.append(next(fresh))
        yield offered[planned[run.key]]
        planned[run.key] += 1


def _planned(run: Experiment, templates: dict[Shape, Spec], seed: int) -> PlannedRun:
    job = job_body(run, templates, seed)
    return PlannedRun(
        kind=run.kind, params=run.params, num_layers=run.num_layers,
        growth_factor=None if run.base is None else run.base.growth_factor,
        num_base_layers=None if run.base is None else run.base.num_layers,
        growth_timing_tokens=run.growth_timing_tokens, tokens=run.tokens, token_budget=run.token_budget,
        compute_flops=run.compute_flops, job=job, key=None if job is None else request_key(job, 0),
    )  # fmt: skip


def _sentence(plan: NextRuns, hardware: Hardware | None) -> str:
    def told(flops: float) -> str:
        if hardware is None:
            return f"{flops:.3g} FLOPs"
        return f"{quantity(hardware.gpu_hours(flops))} GPU-hours"

    low, high = plan.saved_flops_interval
    return (
        f"Spending {told(plan.cost_flops)} on these runs raises the expected saving on the target by {told(plan.saved_flops)} "
        f"(80% interval {told(low)} to {told(high)}), net {told(plan.net_flops)}."
    )
