"""`GET /healthz`: does the service itself live, so that a restart would not help. `GET /readyz`: can it take requests now.

A part that fails is named. A probe that is failed here should keep traffic away (`/readyz`) or restart the service
(`/healthz`); a database that is away is no reason for the latter by itself, yet a service without one can do nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.api.problems import FieldError, Problem, responses
from app.api.service import Service, ServiceDep

router = APIRouter(tags=["service"])

# Without a whole turn of the launcher loop for so long, jobs are not looked after.
LONGEST_TICK_SECONDS = 30.0
# Enough that a full disk is noticed.
BYTES_TO_WRITE = 4096


class Health(BaseModel):
    status: str
    version: str
    data_dir: str | None = Field(description="null where keys are needed: this route is open")
    num_slots: int


class Readiness(BaseModel):
    """Every part that was looked at, and that it is well; a part that is not makes the answer a 503."""

    status: Literal["ready"]
    checks: dict[str, Literal["ok"]]


@router.get("/healthz", summary="Is the service alive", responses=responses(503))
def healthz(service: ServiceDep) -> Health:
    """Its database answers and its launcher loop runs."""
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


@router.get("/readyz", summary="Can the service work", responses=responses(503))
def readyz(service: ServiceDep) -> Readiness:
    """Whether the service can do its work now: its database answers and is migrated, its launcher loop goes round, its
    directories take files, and it is not being stopped."""
    failed = [
        FieldError(pointer=f"check:{name}", detail=f"{name}: {trouble}")
        for name, check in CHECKS.items()
        if (trouble := check(service))
    ]
    if failed:
        raise Problem(503, "not ready: " + "; ".join(error.detail for error in failed), failed)
    return Readiness(status="ready", checks=dict.fromkeys(CHECKS, "ok"))


def _database(service: Service) -> str:
    try:
        revision, newest = service.database.revision(), service.database.newest_revision()
    except SQLAlchemyError as error:
        return f"it does not answer ({getattr(error, 'orig', error)}); see that it runs"
    if revision != newest:
        return f"its schema is at revision {revision}, this growthlaw's at {newest}; restart the service to migrate it"
    return ""


def _launcher(service: Service) -> str:
    if not service.supervisor.is_alive:
        return "the launcher loop has ended; restart the service and read its log"
    seconds = service.supervisor.seconds_since_tick()
    if seconds > LONGEST_TICK_SECONDS:
        return f"the launcher loop has not gone round for {seconds:.0f} s; the log says where it fails or hangs"
    return ""


def _directories(service: Service) -> str:
    for folder in (service.settings.data_dir, service.settings.runs_dir):
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                file.write(b"\0" * BYTES_TO_WRITE)
        except OSError as error:
            return f"{folder} takes no file ({error.strerror}); free some space, or give it to the service's user"
    return ""


def _stopping(service: Service) -> str:
    return "the service is being stopped" if service.is_stopping else ""


CHECKS: dict[str, Callable[[Service], str]] = {
    "database": _database,
    "launcher": _launcher,
    "data_dir": _directories,
    "serving": _stopping,
}
