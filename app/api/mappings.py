"""`GET|PUT|DELETE /mappings/{name}`: saved options of imports, so that a team says once what its project's logs mean."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import RequestBody
from app.api.import_bodies import ImportOptionsBody
from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.contract import NAME_PATTERN
from app.store import mappings as mapping_store
from app.store.tables import MappingRow

router = APIRouter(tags=["runs"])

Name = Annotated[str, Path(pattern=NAME_PATTERN, description="the project's")]
Text = Annotated[str, Field(min_length=1, max_length=200)]

_EXAMPLE: dict[str, Any] = {
    "cohort": "mine", "corpus": "web", "tokenizer": "bpe-64", "tokens": "step * 1024 * 4096",
    "columns": [{"column": "eval/web", "metric": "validation_loss", "dataset": "web"}],
    "wandb": {"filters": {"state": "finished"}, "from_config": {"peak_lr": "optimizer.lr"}},
}  # fmt: skip


class WandbBody(RequestBody):
    """Which runs of a Weights & Biases project, and what their configurations say; the command reads it."""

    filters: dict[str, Any] = Field(default={}, max_length=100, description="W&B's own")
    runs: list[Text] = Field(default=[], max_length=1000, description="patterns of names or ids")
    states: list[Text] = Field(default=[], max_length=20)
    join: Literal["name", "group"] | None = None
    from_config: dict[str, Text] = Field(default={}, max_length=100, description="field of the import -> key")


class MappingBody(ImportOptionsBody):
    """Options of `POST /runs/import`, any of them; the name of a run is that run's alone."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    cohort: str | None = Field(default=None, pattern=NAME_PATTERN)  # type: ignore[assignment]
    name: None = Field(default=None, description="never saved")  # type: ignore[assignment]
    replace: Literal[False] = Field(default=False, description="never saved")
    wandb: WandbBody = WandbBody()


class Mapping(BaseModel):
    """A saved mapping; `options` holds what was saved and nothing else."""

    name: str
    options: dict[str, Any]
    updated_at: str

    @classmethod
    def of(cls, row: MappingRow) -> Mapping:
        return cls(name=row.name, options=json.loads(row.body), updated_at=row.updated_at)


@router.get("/mappings", summary="List saved mappings", responses=responses(422))
def get_mappings(service: ServiceDep, page: PageDep) -> Page[Mapping]:
    """By name."""
    with service.database.read() as session:
        rows = mapping_store.list_mappings(session, after=page.after, limit=page.limit + 1)
        return page.cut([Mapping.of(row) for row in rows], "name")


@router.get("/mappings/{name}", summary="One saved mapping", responses=responses(404))
def get_mapping(name: Name, service: ServiceDep) -> Mapping:
    with service.database.read() as session:
        row = mapping_store.get_mapping(session, name)
        if row is None:
            raise Problem.not_found("mapping", name)
        return Mapping.of(row)


@router.put("/mappings/{name}", summary="Save a mapping", responses=responses(422))
def put_mapping(name: Name, body: Annotated[MappingBody, Body()], service: ServiceDep) -> Mapping:
    """Save a mapping; one of this name takes the new options, whole."""
    text = json.dumps(
        body.model_dump(mode="json", exclude_unset=True, exclude={"name", "replace", "restore"}), sort_keys=True
    )
    with service.database.write() as session:
        return Mapping.of(mapping_store.put_mapping(session, name, text))


@router.delete("/mappings/{name}", summary="Remove a mapping", status_code=204, responses=responses(404))
def delete_mapping(name: Name, service: ServiceDep) -> None:
    with service.database.write() as session:
        row = mapping_store.get_mapping(session, name)
        if row is None:
            raise Problem.not_found("mapping", name)
        mapping_store.delete_mapping(session, row)
