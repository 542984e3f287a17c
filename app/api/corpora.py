"""`GET|POST /corpora`: what runs can be trained on. Over HTTP only the bundled corpus is prepared: a path in a request
could name any file of the machine, so a user's own files go through `growthlaw corpus prepare`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.jobs import Job
from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.contract import NAME_PATTERN, CorpusSpec
from app.corpus.shards import Manifest, prepared_corpora
from app.jobs.queue import enqueue_corpus
from app.store import jobs as job_store
from app.store.ids import new_id

router = APIRouter(tags=["corpora"])


class SplitBody(BaseModel):
    """Bytes of text and documents are null where ready-made tokens do not tell."""

    num_tokens: int
    num_bytes: int | None
    num_documents: int | None


class Corpus(BaseModel):
    """A prepared corpus; `content_hash` covers the tokenizer and every token."""

    name: str
    content_hash: str
    vocab_size: int
    bytes_per_token: float | None
    train: SplitBody
    validation: SplitBody
    origin: str
    licence: str

    @classmethod
    def of(cls, manifest: Manifest) -> Corpus:
        splits = {
            name: SplitBody.model_validate(split, from_attributes=True) for name, split in manifest.splits.items()
        }
        return cls(
            name=manifest.name,
            content_hash=manifest.content_hash,
            vocab_size=manifest.vocab_size,
            bytes_per_token=manifest.bytes_per_token,
            train=splits["train"],
            validation=splits["validation"],
            origin=manifest.origin,
            licence=manifest.licence,
        )


class CorpusBody(RequestBody):
    """Prepare the bundled corpus (CPython's documentation and standard library) under `name`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "demo", "vocab_size": 1024}]})

    name: str = Field(pattern=NAME_PATTERN)
    vocab_size: int = Field(default=1024, ge=257, le=1_000_000)


@router.get("/corpora", summary="List prepared corpora")
def list_corpora(service: ServiceDep, page: PageDep) -> Page[Corpus]:
    """What runs can be trained on."""
    return page.of([Corpus.of(manifest) for manifest in prepared_corpora(service.settings.corpora_dir)], "name")


@router.get("/corpora/{name}", summary="One prepared corpus", responses=responses(404))
def get_corpus(name: str, service: ServiceDep) -> Corpus:
    """Its splits, its vocabulary and the hash of its content."""
    if name not in [path.name for path in service.settings.corpora_dir.iterdir()]:
        raise Problem.not_found("corpus", name)
    return Corpus.of(service.manifest(name, pointer="path:name"))


@router.post("/corpora", summary="Prepare the bundled corpus", status_code=202, responses=responses(409, 422))
def post_corpus(body: Annotated[CorpusBody, Body()], service: ServiceDep, caller: CallerDep) -> Job:
    """Start a preparation; the answer is its job."""
    folder = service.settings.corpora_dir / body.name
    with service.database.read() as session:
        active = job_store.list_jobs(session, states=("queued", "running", "paused"), limit=1000)
    if folder.exists() or any(job.kind == "corpus" and job.name == body.name for job in active):
        raise Problem.field(
            "/name", f"corpus {body.name!r} exists or is being prepared; use it or choose another name", status=409
        )
    spec = CorpusSpec(
        run_id=new_id("job"), name=body.name, corpus_dir=str(folder.resolve()), vocab_size=body.vocab_size
    )
    return Job.model_validate(enqueue_corpus(service.database, service.settings.runs_dir, spec, owner=caller.id))
