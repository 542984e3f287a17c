"""`GET /workers`: the machines that jobs run on, and which job each device has."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.api.problems import responses
from app.api.service import Page, PageDep, ServiceDep
from app.jobs.launchers.base import EngineName

router = APIRouter(tags=["jobs"])


class Device(BaseModel):
    """A whole GPU or one CPU slot; free where `job_id` is null."""

    model_config = ConfigDict(from_attributes=True)

    kind: Literal["gpu", "cpu"]
    index: int
    name: str
    memory_bytes: int | None
    memory_free_bytes: int | None
    job_id: str | None


class Worker(BaseModel):
    """One machine as its launcher saw it at `heartbeat_at`."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    engine: EngineName
    heartbeat_at: str
    memory_bytes: int | None
    memory_free_bytes: int | None
    versions: dict[str, str]
    devices: list[Device]


@router.get("/workers", summary="List what jobs run on", responses=responses(422))
def list_workers(service: ServiceDep, page: PageDep) -> Page[Worker]:
    """Each node with its GPUs and CPU slots: free, or which job."""
    return page.of([Worker.model_validate(node) for node in service.supervisor.nodes()], "name")
