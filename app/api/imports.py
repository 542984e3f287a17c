"""`POST /runs/import`: runs that were trained elsewhere, under their cohorts."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.problems import Problem, responses
from app.api.service import ServiceDep
from app.bundled import bundled_dir
from app.ingest.bundle import read_bundle
from app.ingest.importing import import_bundle
from app.store.cohorts import CohortMismatch

router = APIRouter(tags=["runs"])


class ImportBody(BaseModel):
    """What to import: the grid of growth runs that ships with Growthlaw."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"bundled": True}]})

    bundled: Literal[True] = Field(description="the runs of data/runs/, as its README.md describes them")


class CohortImported(BaseModel):
    """One cohort of the bundle; runs known already were the same, number by number, and stay as they are."""

    model_config = ConfigDict(from_attributes=True)

    cohort: str
    num_runs_added: int
    num_runs_known: int
    num_points_added: int


class Imported(BaseModel):
    """What was stored, or with `dry_run` would be. A cohort that gained runs is refitted in the background."""

    dry_run: bool
    cohorts: list[CohortImported]


@router.post("/runs/import", responses=responses(409, 422))
def post_import(
    body: Annotated[ImportBody, Body()],
    service: ServiceDep,
    dry_run: Annotated[bool, Query(description="check everything, store nothing")] = False,
) -> Imported:
    try:
        folder = bundled_dir("runs")
    except FileNotFoundError as error:
        raise Problem.field("/bundled", str(error)) from None
    bundle = read_bundle(folder)
    try:
        done = import_bundle(service.database, bundle, dry_run=dry_run)
    except CohortMismatch as error:
        raise Problem.field("/bundled", str(error), status=409) from None
    if not dry_run:
        for cohort in done:
            service.refitter.ask(cohort.cohort)
    return Imported(dry_run=dry_run, cohorts=[CohortImported.model_validate(cohort) for cohort in done])
