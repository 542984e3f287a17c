"""`GET /healthz`: is the service itself alive: its database answers and its launcher loop runs."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import text

from app.api.problems import Problem, responses
from app.api.service import ServiceDep

router = APIRouter(tags=["service"])


class Health(BaseModel):
    status: str
    version: str
    data_dir: str | None = Field(description="null where keys are needed: this route is open")
    num_slots: int


@router.get("/healthz", responses=responses(503))
def healthz(service: ServiceDep) -> Health:
    if not service.supervisor.is_alive:
        raise Problem(503, "the launcher loop has ended; restart the service and read its log")
    with service.database.read() as session:
        session.execute(text("SELECT 1"))
    return Health(
        status="ok",
        version=version("growthlaw"),
        data_dir=None if service.settings.needs_key else str(service.settings.data_dir.resolve()),
        num_slots=service.settings.num_slots,
    )
