"""`POST /recommend`: whether, when and by how much to grow, for a target size and a token budget."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.problems import Problem, responses
from app.api.service import Service, ServiceDep
from app.ingest.importing import SOURCE
from app.store import guidelines as guideline_store
from app.store import runs as run_store
from fitting.flops import Shape
from fitting.guideline import Guideline
from fitting.published import published_guideline
from fitting.recommendation import Recommendation, Request, recommend, with_alternatives_from

router = APIRouter(tags=["recommend"])

DEFAULT_GUIDELINE = "published:gstack"


class ShapeBody(BaseModel):
    """A Llama-family shape; with it FLOPs are counted in full, attention and head included."""

    model_config = ConfigDict(extra="forbid")

    num_layers: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(ge=2, le=1_000_000)
    num_heads: int = Field(ge=1, le=100_000)
    num_kv_heads: int | None = Field(default=None, ge=1, le=100_000, description="num_heads where left out")
    intermediate_size: int = Field(ge=1, le=10_000_000)
    vocab_size: int = Field(ge=2, le=10_000_000)
    context_length: int = Field(ge=1, le=100_000_000)

    def to_shape(self) -> Shape:
        num_kv_heads = self.num_kv_heads or self.num_heads
        for field, divisor, whole in (
            ("hidden_size", self.num_heads, self.hidden_size),
            ("num_heads", num_kv_heads, self.num_heads),
        ):
            if whole % divisor:
                raise Problem.field(
                    f"/target_shape/{field}", f"{field} is {whole}, but its heads need a multiple of {divisor}; use one"
                )
        return Shape(**self.model_dump() | {"num_kv_heads": self.num_kv_heads or self.num_heads})


class RecommendBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"target_params": 7e9, "token_budget": 2e12}]}
    )

    token_budget: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="tokens a from-scratch run would get"
    )
    compute_flops: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="the budget in FLOPs")
    gpu_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="the budget in GPU-hours")
    peak_flops_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of one GPU")
    utilisation: float | None = Field(default=None, gt=0, le=1, description="share of the peak, training the target")
    base_utilisation: float | None = Field(
        default=None, gt=0, le=1, description="training the base; utilisation's else"
    )
    existing_base_tokens: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="tokens that a base which is there already has seen"
    )
    objective: Literal["lowest_loss", "fewest_flops"] = Field(
        default="lowest_loss", description="of the budget, or to the loss that scratch reaches with it"
    )
    target_params: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="non-embedding parameters")
    target_shape: ShapeBody | None = None
    num_target_layers: int | None = Field(default=None, ge=1, le=10_000)
    growth_factors: list[float] | None = Field(default=None, min_length=1, max_length=50)
    base_compute: Literal["charged", "sunk"] = "charged"
    guideline: str = Field(
        default="active", max_length=64, description='"active", "published:gstack", "published:null", or a version id'
    )
    cohort: str | None = Field(default=None, max_length=64)

    def to_request(self) -> Request:
        fields = self.model_dump(exclude={"guideline", "target_shape", "growth_factors"})
        fields["target_shape"] = self.target_shape.to_shape() if self.target_shape else None
        fields["growth_factors"] = tuple(self.growth_factors) if self.growth_factors else None
        return Request.from_fields(fields)


def find_guideline(service: Service, name: str, cohort: str | None) -> Guideline:
    """The guideline that a request names; "active" is the cohort's, or the published rule where there is none."""
    if name.startswith("published:"):
        return published_guideline(name)
    if name == "active":
        if cohort is None:
            return published_guideline(DEFAULT_GUIDELINE)
        with service.database.read() as session:
            if run_store.get_cohort(session, cohort) is None:
                raise Problem.field(
                    "/cohort", f"there is no cohort {cohort!r}; leave it out, or store runs of it first"
                )
            active = guideline_store.active_guideline(session, cohort)
        if active is None:
            return published_guideline(DEFAULT_GUIDELINE)
        name = active.id
    guideline = service.guideline(name)
    if guideline is None:
        raise Problem.field(
            "/guideline",
            f"there is no guideline {name!r}; use 'active', 'published:gstack' or an id of GET /guidelines",
        )
    return guideline


@router.post("/recommend", responses=responses(422))
def post_recommend(body: Annotated[RecommendBody, Body()], service: ServiceDep) -> Recommendation:
    request = body.to_request()
    guideline = find_guideline(service, body.guideline, body.cohort)
    return with_alternatives_from(
        recommend(request, guideline), request, imported_guidelines(service, guideline.cohort)
    )


def imported_guidelines(service: Service, cohort: str | None) -> list[Guideline]:
    """The active guidelines of cohorts that hold imported runs, but for `cohort`."""
    with service.database.statement() as connection:
        active = guideline_store.active_of_source(connection, SOURCE)
    found = [service.guideline(guideline_id) for name, guideline_id in active if name != cohort]
    return [guideline for guideline in found if guideline is not None]
