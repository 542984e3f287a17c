"""`POST /recommend`: whether, when and by how much to grow; many questions at once; and the losses behind one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Query, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.api.bodies import RequestBody
from app.api.problems import ProblemBody, problem_of, responses
from app.api.questions import QuestionBody, RecommendBody
from app.api.service import Service, ServiceDep, get_service
from app.guidelines.versions import newer_answer
from app.store import guidelines as guideline_store
from app.store import recommendations as recommendation_store
from app.store import runs as run_store
from app.store.ids import new_id
from app.store.recommendations import Answered
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.published import published_guideline
from fitting.recommendation import Recommendation as FittedAnswer
from fitting.recommendation import Request, Surface, recommend, surface, with_alternatives_from

router = APIRouter(tags=["recommend"])

DEFAULT_GUIDELINE = "published:gstack"
MOST_QUESTIONS = 100
MOST_TIMINGS, MOST_FACTORS, MOST_BUDGETS = 200, 20, 41


@dataclass(frozen=True, kw_only=True)
class Recommendation(FittedAnswer):
    """The answer. `id` names it for `POST /grow`; `kept` answers stand under `GET /recommendations/{id}` for good, others
    only until some hundreds of later answers, or a restart, have replaced them."""

    id: str
    kept: bool


_TO_JSON = TypeAdapter(Recommendation).dump_json


class BatchBody(RequestBody):
    """Questions of a sweep. Each is the body of `POST /recommend` and is answered, or not, by itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "questions": [
                        {"target_params": 7e9, "token_budget": 2e12},
                        {"target_params": -1, "token_budget": 2e12},
                    ]
                }
            ]
        },
    )

    questions: list[Any] = Field(min_length=1, max_length=MOST_QUESTIONS, description="bodies of POST /recommend")


class BatchResult(BaseModel):
    """What became of one question: an answer or a problem, the other is null."""

    index: int
    answer: Recommendation | None
    problem: ProblemBody | None


class BatchAnswer(BaseModel):
    """A result for each question, in their order."""

    results: list[BatchResult]
    num_answers: int
    num_problems: int


class SurfaceQuery(BaseModel):
    """The question behind a surface, as query parameters. The target's shape is given by all of its sizes, or not at all."""

    model_config = ConfigDict(extra="forbid")

    token_budget: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    compute_flops: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    peak_flops_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    utilisation: float | None = Field(default=None, gt=0, le=1)
    base_utilisation: float | None = Field(default=None, gt=0, le=1)
    target_params: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    num_target_layers: int | None = Field(default=None, ge=1, le=10_000)
    hidden_size: int | None = Field(default=None, ge=2, le=1_000_000)
    num_heads: int | None = Field(default=None, ge=1, le=100_000)
    num_kv_heads: int | None = Field(default=None, ge=1, le=100_000, description="num_heads where left out")
    intermediate_size: int | None = Field(default=None, ge=1, le=10_000_000)
    vocab_size: int | None = Field(default=None, ge=2, le=10_000_000)
    context_length: int | None = Field(default=None, ge=1, le=100_000_000)
    existing_base_tokens: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    base_compute: Literal["charged", "sunk"] = "charged"
    growth_factors: list[float] | None = Field(default=None, min_length=1, max_length=MOST_FACTORS)
    num_timings: int = Field(default=40, ge=3, le=MOST_TIMINGS, description="points of d for each growth factor")
    num_budgets: int = Field(
        default=0,
        ge=0,
        le=MOST_BUDGETS,
        description="budgets from an 8th to 8 times this one at which to compare with scratch",
    )
    guideline: str = Field(default="active", max_length=64, description='"active" or a version id')
    cohort: str | None = Field(default=None, max_length=64)

    def to_body(self) -> QuestionBody:
        """The same question as `POST /recommend` takes it.

        Raises:
            InputError: a part of the shape is missing.
        """
        sizes = ("num_target_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size", "context_length")
        values = self.model_dump(exclude={*sizes[1:], "num_kv_heads", "num_timings", "num_budgets"}, exclude_none=True)
        shape = {name: getattr(self, name) for name in sizes}
        if any(value is not None for value in [*list(shape.values())[1:], self.num_kv_heads]):
            for name, value in shape.items():
                if value is None:
                    raise InputError(name, "is missing, and a shape is known by all of its sizes", "give it, or none")
            shape["num_layers"] = shape.pop("num_target_layers")
            values["target_shape"] = shape | {"num_kv_heads": self.num_kv_heads}
        return QuestionBody.model_validate(values)


def find_guideline(service: Service, name: str, cohort: str | None) -> Guideline:
    """The guideline that a question names; "active" is the cohort's, or the published rule where there is none."""
    if name.startswith("published:"):
        return published_guideline(name)
    if name == "active":
        if cohort is None:
            return published_guideline(DEFAULT_GUIDELINE)
        with service.database.read() as session:
            if run_store.get_cohort(session, cohort) is None:
                raise InputError(
                    "cohort", f"is {cohort!r}, but there is no cohort of this name", "leave it out, or store runs of it"
                )
            active = guideline_store.active_version(session, cohort)
        if active is None:
            return published_guideline(DEFAULT_GUIDELINE)
        name, _ = active
    guideline = service.guideline(name)
    if guideline is None:
        raise InputError(
            "guideline", f"is {name!r}, but there is none of this id",
            "use 'active', 'published:gstack' or an id of GET /guidelines",
        )  # fmt: skip
    return guideline


def answer(service: Service, body: RecommendBody) -> tuple[Recommendation, Answered]:
    """The answer to one question, and what would be kept of it.

    Raises:
        InputError: the question cannot be asked, or not of this guideline.
    """
    question = body.to_question(service.settings.checkpoints_dir)
    guideline = find_guideline(service, body.guideline, body.cohort)
    found = with_alternatives_from(
        recommend(question, guideline), question, imported_guidelines(service, guideline.cohort)
    )
    if newer := newer_answer(service.database, guideline, question, service.guideline):
        found = replace(found, newer=newer)
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    answered = Recommendation(**fields, id=new_id("rec"), kept=body.keep)
    asked = Answered(
        id=answered.id,
        question=partial(body.model_dump, mode="json", exclude_none=True, exclude={"keep"}),
        cohort=guideline.cohort,
        guideline_id=guideline.id,
        guideline_version=guideline.version,
        answer=found,
    )
    service.recent_answers.add(asked)
    return answered, asked


@router.post(
    "/recommend",
    summary="Ask whether, when and by how much to grow",
    response_model=Recommendation,
    responses=responses(422),
)
async def post_recommend(body: Annotated[RecommendBody, Body()], request: HttpRequest) -> Response:
    """One answer with its support, both accountings of the base's compute, the recipe and what is not known.

    A guideline that lies more than 30x from the question gives no number of its own: the published rule answers instead,
    and says so.
    """
    service = await get_service(request)  # called, not injected: this is the hottest route

    def answer_as_json() -> bytes:
        answered, row = answer(service, body)
        if body.keep:
            _keep(service, [row])
        return _TO_JSON(answered)

    # A plain `def` would be sent to a thread twice, once for its answer's JSON, and to as many threads as there are
    # requests, which then wait for one another at every turn.
    return Response(await run_sync(answer_as_json, limiter=service.answering), media_type="application/json")


@router.post("/recommend/batch", summary="Ask many questions at once", responses=responses(422))
def post_batch(body: Annotated[BatchBody, Body()], service: ServiceDep) -> BatchAnswer:
    """Up to 100 questions, each answered or refused by itself: a bad one does not lose the others."""
    results, kept = [], []
    for index, question in enumerate(body.questions):
        try:
            asked = RecommendBody.model_validate(question)
            answered, row = answer(service, asked)
        except InputError as error:
            results.append(BatchResult(index=index, answer=None, problem=problem_of(error)))
        except ValidationError as error:
            told = RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
            results.append(BatchResult(index=index, answer=None, problem=problem_of(told)))
        else:
            results.append(BatchResult(index=index, answer=answered, problem=None))
            kept += [row] if asked.keep else []
    _keep(service, kept)
    num_answers = sum(result.answer is not None for result in results)
    return BatchAnswer(results=results, num_answers=num_answers, num_problems=len(results) - num_answers)


@router.get("/surface", summary="The loss over growth timing and growth factor", responses=responses(422))
def get_surface(query: Annotated[SurfaceQuery, Query()], service: ServiceDep) -> Surface:
    """Expected loss and grown - scratch of a fitted guideline, for each growth factor over its growth timings."""
    question = query.to_body().to_question(None)
    assert isinstance(question, Request)
    guideline = find_guideline(service, query.guideline, query.cohort)
    return surface(question, guideline, num_timings=query.num_timings, num_budgets=query.num_budgets)


def _keep(service: Service, answers: Sequence[Answered]) -> None:
    if answers:
        with service.database.write() as session:
            for answered in answers:
                recommendation_store.keep(session, answered)


def imported_guidelines(service: Service, cohort: str | None) -> list[Guideline]:
    """The active guidelines of cohorts that hold imported runs, but for `cohort`."""
    active = guideline_store.active_of_imported(service.database)
    found = [service.guideline(guideline_id) for name, guideline_id in active if name != cohort]
    return [guideline for guideline in found if guideline is not None]
