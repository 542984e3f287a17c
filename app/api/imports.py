"""`POST /runs/import`: runs that were trained elsewhere, under their cohorts: logs as files, or the bundled runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from app.api.access import Caller, CallerDep
from app.api.bodies import RequestBody
from app.api.import_bodies import ImportOptionsBody, SeveralBody
from app.api.problems import FieldError, Problem, responses
from app.api.service import Service, ServiceDep
from app.bundled import bundled_dir
from app.ingest.build import build_runs
from app.ingest.bundle import read_bundle
from app.ingest.imported import ImportedRun, ImportFiles
from app.ingest.importing import import_bundle
from app.ingest.logs.rows import MAX_BYTES, LogFile
from app.ingest.storing import StoredRun, import_runs
from app.store import runs as run_store
from app.store.cohorts import CohortMismatch
from fitting.errors import InputError

router = APIRouter(tags=["runs"])

MAX_FILES = 1_000
# The files, and room for the form around them.
MAX_BODY_BYTES = MAX_BYTES + 1024 * 1024
_FILE_PARTS = ("files", "base", "grown")
_OPTIONS = ("body", "options")


class ImportBody(RequestBody):
    """What to import: the grid of growth runs that ships with Growthlaw."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"bundled": True}]})

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


class RunLeftOut(BaseModel):
    """A run of several that made none, and why."""

    name: str
    reason: str


class Imported(BaseModel):
    """What was stored, or with `dry_run` would be. A cohort that gained runs is refitted in the background."""

    dry_run: bool
    cohorts: list[CohortImported]
    runs: list[RunImported] = []
    left_out: list[RunLeftOut] = []


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run to be imported; ``pointer`` is where its options stand in the body."""

    options: ImportOptionsBody
    files: ImportFiles
    pointer: str = ""


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """A parsed body: the bundled runs where ``runs`` is empty, else logs."""

    runs: tuple[Asked, ...] = ()
    skip_bad: bool = False
    restore: bool = False


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
        text = _options_text(form)
        files = await _files(form)
    finally:
        await form.close()
    if not _is_several(text):
        parts = ImportFiles(single=files["files"], base=files["base"], grown=files["grown"])
        return ImportRequest(runs=(Asked(options=_validated(ImportOptionsBody, text, _OPTIONS), files=parts),))
    several: SeveralBody = _validated(SeveralBody, text, _OPTIONS)
    if files["base"] or files["grown"]:
        raise Problem.field("/base", "files of several runs come in the part files; name each run's in its options")
    return ImportRequest(runs=tuple(_asked(several, files["files"])), skip_bad=several.skip_bad)


def _is_several(text: str | bytes) -> bool:
    """Whether these options list runs; what is no JSON is left to whoever reads it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "runs" in found


def _asked(several: SeveralBody, files: Sequence[LogFile]) -> Iterator[Asked]:
    known = {file.name: file for file in files}
    if len(known) < len(files):
        raise Problem.field("/files", "two files have one name; name them apart")
    names = [(run.cohort, run.name) for run in several.runs]
    for place, run in enumerate(several.runs):
        pointer = f"/options/runs/{place}"
        if (run.cohort, run.name) in names[:place]:
            raise Problem.field(
                f"{pointer}/name", f"{run.name!r} comes twice in cohort {run.cohort!r}; name them apart"
            )
        parts: dict[str, tuple[LogFile, ...]] = {}
        for part in _FILE_PARTS:
            wanted = getattr(run, part)
            if missing := [name for name in wanted if name not in known]:
                raise Problem.field(f"{pointer}/{part}", f"{missing[0]!r} is no file that was sent; send it as files")
            parts[part] = tuple(known[name] for name in wanted)
        files_of_run = ImportFiles(single=parts["files"], base=parts["base"], grown=parts["grown"])
        yield Asked(options=run, files=files_of_run, pointer=pointer)


def _options_text(form: FormData) -> str | bytes:
    for name in form:
        if name not in ("options", *_FILE_PARTS):
            raise Problem.field(f"/{name}", f"this part is not known; send options and {', '.join(_FILE_PARTS)}")
    given = form.get("options")
    if not isinstance(given, str):
        raise Problem.field("/options", "options are missing; send them as one part of JSON text")
    return given


async def _files(form: FormData) -> dict[str, tuple[LogFile, ...]]:
    parts: dict[str, tuple[LogFile, ...]] = {}
    for part in _FILE_PARTS:
        given: list[LogFile] = []
        for file in form.getlist(part):
            if not isinstance(file, UploadFile):
                raise Problem.field(f"/{part}", "this part is text; send files, with a file name each")
            given.append(LogFile(name=(file.filename or part)[-200:], content=await file.read()))
        parts[part] = tuple(given)
    return parts


def _validated(model: type[Any], text: str | bytes, where: tuple[str, ...]) -> Any:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise RequestValidationError([{**entry, "loc": (*where, *entry["loc"])} for entry in error.errors()]) from None


def _options_schema() -> dict[str, Any]:
    """The options' schema without references, which would point at the root of the OpenAPI document."""
    one, several = ImportOptionsBody.model_json_schema(), SeveralBody.model_json_schema()
    definitions = several.pop("$defs")
    run = definitions["RunOfSeveralBody"]
    for schema in (one, run):
        schema["properties"]["columns"]["items"] = definitions["ColumnBody"]
    several["properties"]["runs"]["items"] = run
    one.pop("$defs")
    return {"anyOf": [one, several]}


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
    if not given.runs:
        return _import_bundled(service, dry_run, given.restore, caller)
    built, left_out = _built(service, given)
    try:
        done = import_runs(
            service.database,
            [run for run, _ in built],
            dry_run=dry_run,
            replace=[options.replace for _, options in built],
            restore=[options.restore for _, options in built],
            actor=caller.id,
        )
    except CohortMismatch as error:
        raise Problem.field("/options/cohort", str(error), status=409) from None
    cohorts = {str(stored.run.header["cohort"]): [] for stored in done}  # type: dict[str, list[StoredRun]]
    for stored in done:
        cohorts[str(stored.run.header["cohort"])].append(stored)
    for cohort, of_it in cohorts.items():
        if not dry_run and any(stored.outcome in ("added", "replaced") for stored in of_it):
            service.refitter.ask(cohort)
    return Imported(
        dry_run=dry_run,
        cohorts=[_counted(cohort, of_it) for cohort, of_it in cohorts.items()],
        runs=list(_told(done)),
        left_out=left_out,
    )


def _built(
    service: Service, given: ImportRequest
) -> tuple[list[tuple[ImportedRun, ImportOptionsBody]], list[RunLeftOut]]:
    """Every run with its options, and the runs that are none; one request may leave none out.

    Raises:
        Problem: logs of several runs make no run; every one of them is named.
    """
    built: list[tuple[ImportedRun, ImportOptionsBody]] = []
    errors: list[FieldError] = []
    left_out: list[RunLeftOut] = []
    for asked in given.runs:
        try:
            runs = build_runs(asked.files, _with_the_cohorts_decision(service, asked.options))
        except InputError as error:
            if not asked.pointer:
                raise
            left_out.append(RunLeftOut(name=asked.options.name, reason=str(error)))
            field = error.field.replace(".", "/")
            errors.append(FieldError(pointer=f"{asked.pointer}/{field}", detail=f"{asked.options.name}: {error}"))
        else:
            built += [(run, asked.options) for run in runs]
    if errors and not given.skip_bad:
        told = "\n".join(error.detail for error in errors)
        raise Problem(422, f"{len(errors)} of {len(given.runs)} logs make no run, so none was stored:\n{told}", errors)
    return built, left_out


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
