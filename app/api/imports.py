"""`POST /runs/import`: runs that were trained elsewhere, under their cohorts: logs as files, or the bundled runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from app.api.access import Caller, CallerDep
from app.api.import_bodies import ImportOptionsBody
from app.api.problems import Problem, responses
from app.api.service import Service, ServiceDep
from app.bundled import bundled_dir
from app.ingest.build import build_runs
from app.ingest.bundle import read_bundle
from app.ingest.imported import ImportFiles
from app.ingest.importing import import_bundle
from app.ingest.logs.rows import MAX_BYTES, LogFile
from app.ingest.storing import StoredRun, import_runs
from app.store import runs as run_store
from app.store.cohorts import CohortMismatch

router = APIRouter(tags=["runs"])

MAX_FILES = 1_000
# The files, and room for the form around them.
MAX_BODY_BYTES = MAX_BYTES + 1024 * 1024
_FILE_PARTS = ("files", "base", "grown")


class ImportBody(BaseModel):
    """What to import: the grid of growth runs that ships with Growthlaw."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"bundled": True}]})

    bundled: Literal[True] = Field(description="the runs of data/runs/, as its README.md describes them")
    restore: bool = Field(default=False, description="bring back runs of it that were removed")


class CohortImported(BaseModel):
    """One cohort; runs known already were the same, number by number, and stay as they are."""

    model_config = ConfigDict(from_attributes=True)

    cohort: str
    num_runs_added: int
    num_runs_known: int
    num_runs_removed: int = Field(description="that were removed before, and stay away without `restore`")
    num_points_added: int


class RunImported(BaseModel):
    """One run of imported logs (units: tokens, FLOPs, nats)."""

    run_id: str | None = Field(description="none where a dry run would add it")
    outcome: Literal["added", "known", "replaced", "removed"]
    name: str
    status: str
    growth_factor: float
    growth_timing_tokens: float
    grown_tokens: float
    compute_flops: float
    wasted_flops: float
    final_loss: float | None
    is_final: bool
    num_points: int
    datasets: list[str]
    warnings: list[str]


class Imported(BaseModel):
    """What was stored, or with `dry_run` would be. A cohort that gained runs is refitted in the background."""

    dry_run: bool
    cohorts: list[CohortImported]
    runs: list[RunImported] = []


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """A parsed body: the bundled runs where ``options`` is None, else logs."""

    options: ImportOptionsBody | None = None
    restore: bool = False
    files: ImportFiles = field(default_factory=ImportFiles)


def _limited(request: Request) -> Request:
    """The request, whose body ends in a problem where it grows too large, said beforehand or not."""
    problem = Problem.field(
        "", f"the body is larger than {MAX_BODY_BYTES:,} bytes; send the log without what is not wanted", 413
    )
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > MAX_BODY_BYTES:
        raise problem
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise problem
        return message

    return Request(request.scope, receive)


async def import_request(request: Request) -> ImportRequest:
    """The body as JSON or as a form of files; both are data and nothing else."""
    request = _limited(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        body = _validated(ImportBody, await request.body(), ("body",))
        return ImportRequest(restore=body.restore)
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=10, max_part_size=1024 * 1024)
    except HTTPException as error:
        raise Problem.field("", f"the form cannot be read ({error.detail}); send multipart/form-data") from None
    try:
        return ImportRequest(
            options=_validated(ImportOptionsBody, _options_text(form), ("body", "options")),
            files=await _files(form),
        )
    finally:
        await form.close()


def _options_text(form: FormData) -> str | bytes:
    for name in form:
        if name not in ("options", *_FILE_PARTS):
            raise Problem.field(f"/{name}", f"this part is not known; send options and {', '.join(_FILE_PARTS)}")
    given = form.get("options")
    if not isinstance(given, str):
        raise Problem.field("/options", "options are missing; send them as one part of JSON text")
    return given


async def _files(form: FormData) -> ImportFiles:
    parts: dict[str, tuple[LogFile, ...]] = {}
    for part in _FILE_PARTS:
        given: list[LogFile] = []
        for file in form.getlist(part):
            if not isinstance(file, UploadFile):
                raise Problem.field(f"/{part}", "this part is text; send files, with a file name each")
            given.append(LogFile(name=(file.filename or part)[-200:], content=await file.read()))
        parts[part] = tuple(given)
    return ImportFiles(single=parts["files"], base=parts["base"], grown=parts["grown"])


def _validated(model: type[Any], text: str | bytes, where: tuple[str, ...]) -> Any:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise RequestValidationError([{**entry, "loc": (*where, *entry["loc"])} for entry in error.errors()]) from None


def _options_schema() -> dict[str, Any]:
    """The options' schema without references, which would point at the root of the OpenAPI document."""
    schema = ImportOptionsBody.model_json_schema()
    schema["properties"]["columns"]["items"] = schema.pop("$defs")["ColumnBody"]
    return schema


_FILES_SCHEMA = {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": ImportBody.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "options": _options_schema(),
                        "files": _FILES_SCHEMA
                        | {"description": "the log of one run, in the order its files were written"},
                        "base": _FILES_SCHEMA | {"description": "of a growth: the base's log"},
                        "grown": _FILES_SCHEMA | {"description": "of a growth: the grown stage's log"},
                    },
                    "required": ["options"],
                },
                "encoding": {"options": {"contentType": "application/json"}},
            },
        },
    }
}


@router.post(
    "/runs/import",
    summary="Import runs of other trainers",
    max_body_size=MAX_BODY_BYTES,
    responses=responses(409, 413, 422),
    openapi_extra=_BODY,
)
def post_import(
    given: Annotated[ImportRequest, Depends(import_request)],
    service: ServiceDep,
    caller: CallerDep,
    dry_run: Annotated[bool, Query(description="check everything, store nothing")] = False,
) -> Imported:
    """Logs as files, or the bundled runs: all of it or nothing, and a second time nothing new."""
    if given.options is None:
        return _import_bundled(service, dry_run, given.restore, caller)
    runs = build_runs(given.files, _with_the_cohorts_decision(service, given.options))
    try:
        done = import_runs(
            service.database, runs, dry_run=dry_run, replace=given.options.replace, restore=given.options.restore,
            actor=caller.id,
        )  # fmt: skip
    except CohortMismatch as error:
        raise Problem.field("/options/cohort", str(error), status=409) from None
    if not dry_run and any(stored.outcome in ("added", "replaced") for stored in done):
        service.refitter.ask(given.options.cohort)
    return Imported(dry_run=dry_run, cohorts=[_counted(given.options.cohort, done)], runs=list(_told(done)))


def _import_bundled(service: Service, dry_run: bool, restore: bool, caller: Caller) -> Imported:
    try:
        folder = bundled_dir("runs")
    except FileNotFoundError as error:
        raise Problem.field("/bundled", str(error)) from None
    bundle = read_bundle(folder)
    try:
        done = import_bundle(service.database, bundle, dry_run=dry_run, restore=restore, actor=caller.id)
    except CohortMismatch as error:
        raise Problem.field("/bundled", str(error), status=409) from None
    if not dry_run:
        for cohort in done:
            service.refitter.ask(cohort.cohort)
    return Imported(dry_run=dry_run, cohorts=[CohortImported.model_validate(cohort) for cohort in done])


def _with_the_cohorts_decision(service: Service, body: ImportOptionsBody) -> Any:
    """The options; what a cohort that stands is judged by need not be said again."""
    options = body.import_options()
    if body.decision_dataset is not None:
        return options
    with service.database.read() as session:
        cohort = run_store.get_cohort(session, body.cohort)
    another = (
        "decision_metric" in body.model_fields_set
        and cohort is not None
        and cohort.decision_metric != body.decision_metric
    )
    if cohort is None or another:
        return options
    return replace(options, decision_metric=cohort.decision_metric, decision_dataset=cohort.decision_dataset)


def _counted(cohort: str, done: Sequence[StoredRun]) -> CohortImported:
    return CohortImported(
        cohort=cohort,
        num_runs_added=sum(stored.outcome == "added" for stored in done),
        num_runs_known=sum(stored.outcome in ("known", "replaced") for stored in done),
        num_runs_removed=sum(stored.outcome == "removed" for stored in done),
        num_points_added=sum(stored.num_points for stored in done),
    )


def _told(done: Iterable[StoredRun]) -> Iterable[RunImported]:
    for stored in done:
        run = stored.run
        fields = {name: run.header[name] for name in RunImported.model_fields if name in run.header}
        yield RunImported(
            **fields,
            run_id=stored.run_id,
            outcome=stored.outcome,
            wasted_flops=run.wasted_flops,
            num_points=stored.num_points,
            datasets=sorted({point.dataset for point in run.points if point.dataset}),
            warnings=list(run.warnings),
        )
