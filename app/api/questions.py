"""The body of `POST /recommend`, and the question that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.bodies import RequestBody
from app.questions import question_fields
from fitting.errors import InputError
from fitting.recommendation import Question, question_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A config.json is a few kilobytes.
LARGEST_CONFIG_BYTES = 1_000_000


class ShapeBody(RequestBody):
    """A Llama-family shape; with it FLOPs are counted in full, attention and head included."""

    num_layers: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(ge=2, le=1_000_000)
    num_heads: int = Field(ge=1, le=100_000)
    num_kv_heads: int | None = Field(default=None, ge=1, le=100_000, description="num_heads where left out")
    intermediate_size: int = Field(ge=1, le=10_000_000)
    vocab_size: int = Field(ge=2, le=10_000_000)
    context_length: int = Field(ge=1, le=100_000_000)


class ExistingBaseBody(RequestBody):
    """A base that is there already: it fixes the growth factor, and its compute is sunk unless `base_compute` says
    otherwise. Give one of `config`, `checkpoint` and `params`. With `config` or `checkpoint` the target may be just
    `num_target_layers`: the base with that many layers."""

    tokens: Positive = Field(description="tokens that it was trained on")
    config: dict[str, Any] | None = Field(default=None, description="its transformers config.json")
    checkpoint: str | None = Field(
        default=None, min_length=1, max_length=1000,
        description="its transformers folder, below what the service was given as --checkpoints-dir",
    )  # fmt: skip
    params: Positive | None = Field(default=None, description="its non-embedding parameters")
    num_layers: int | None = Field(default=None, ge=1, le=10_000, description="beside params")


class QuestionBody(RequestBody):
    """A target, a budget, and what may be chosen. The budget is one of `token_budget`, `compute_flops` and `gpu_hours`, or
    is itself what is asked for, with `loss_to_match_nats`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"target_params": 7e9, "token_budget": 2e12}]})

    token_budget: Positive | None = Field(default=None, description="tokens a from-scratch run would get")
    compute_flops: Positive | None = Field(default=None, description="the budget in FLOPs")
    gpu_hours: Positive | None = Field(
        default=None, description="the budget in GPU-hours; needs peak_flops_per_second and utilisation"
    )
    loss_to_match_nats: Positive | None = Field(
        default=None,
        description="instead of a budget: what budget reaches this loss of the cohort, grown and from scratch",
    )
    peak_flops_per_second: Positive | None = Field(default=None, description="of one GPU")
    utilisation: float | None = Field(default=None, gt=0, le=1, description="share of the peak, training the target")
    base_utilisation: float | None = Field(
        default=None, gt=0, le=1, description="training the base; utilisation's else"
    )
    target_params: Positive | None = Field(default=None, description="non-embedding parameters")
    target_shape: ShapeBody | None = None
    target_config: dict[str, Any] | None = Field(
        default=None, description="the target's transformers config.json, instead of target_shape"
    )
    context_length: int | None = Field(
        default=None, ge=1, le=100_000_000,
        description="tokens of one training sequence, beside a config; its max_position_embeddings where left out",
    )  # fmt: skip
    num_target_layers: int | None = Field(default=None, ge=1, le=10_000)
    existing_base: ExistingBaseBody | None = None
    existing_base_tokens: Positive | None = Field(
        default=None, description="tokens that a base of any size on offer has seen; existing_base says which base"
    )
    objective: Literal["lowest_loss", "fewest_flops"] = Field(
        default="lowest_loss", description="of the budget, or to the loss that scratch reaches with it"
    )
    growth_factors: list[float] | None = Field(default=None, min_length=1, max_length=50)
    base_compute: Literal["charged", "sunk"] | None = Field(
        default=None, description="which accounting stands on top; charged where left out, sunk with existing_base"
    )
    guideline: str = Field(
        default="active", max_length=64, description='"active", "published:gstack", "published:null", or a version id'
    )
    cohort: str | None = Field(default=None, max_length=64)

    def to_question(self, checkpoints_dir: Path | None) -> Question:
        """The question to ask.

        Raises:
            InputError: names the field, the limit and the mend.
        """
        given = self.model_dump(include=set(QuestionBody.model_fields) - {"guideline"})

        def read_config(checkpoint: str) -> Mapping[str, Any]:
            return read_checkpoint_config(checkpoints_dir, checkpoint)

        return question_of(question_fields(given, read_config))


class RecommendBody(QuestionBody):
    model_config = QuestionBody.model_config

    keep: bool = Field(default=False, description="keep question and answer under the answer's id")


def read_checkpoint_config(root: Path | None, checkpoint: str) -> Mapping[str, Any]:
    """The config.json of a folder below ``root``; nothing else of it is read, and nothing outside.

    Raises:
        InputError: there is no root, or no such folder or file below it.
    """
    field = "existing_base.checkpoint"
    if root is None:
        raise InputError(
            field, f"is {checkpoint!r}, but this service reads no checkpoints",
            "give the base's config, or start the service with --checkpoints-dir",
        )  # fmt: skip
    missing = InputError(
        field, f"is {checkpoint!r}, but there is no config.json in such a folder of the service's checkpoints",
        "name a transformers folder below --checkpoints-dir, or give its config",
    )  # fmt: skip
    try:
        file = (root / checkpoint / "config.json").resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file():
            raise missing
        if file.stat().st_size > LARGEST_CONFIG_BYTES:
            raise InputError(field, f"has a config.json above {LARGEST_CONFIG_BYTES:,} bytes", "give its config")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise missing from None
    if not isinstance(config, dict):
        raise missing
    return config
