"""What routes share: the settings, the database, the launcher loop and loaded guidelines of one service."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request
from pydantic import BaseModel

from app.api.problems import Problem
from app.contract import NAME_PATTERN
from app.corpus.shards import Manifest, read_manifest
from app.guidelines.refitter import Refitter
from app.guidelines.versions import load_guideline
from app.jobs.supervisor import Supervisor
from app.observe.metrics import LauncherCollector, Metrics
from app.observe.stored import StoredCollector
from app.settings import Settings
from app.store.database import Database
from app.store.recommendations import RecentAnswers
from fitting.guideline import Guideline

Item = TypeVar("Item")
_LARGEST_CACHE = 64
# Answers are computed in Python, so that many threads only take turns; a few, so that one slow answer holds up no other.
_THREADS_THAT_ANSWER = 4


class Page(BaseModel, Generic[Item]):
    """One page of a listing; `next` is the cursor of the page behind it."""

    data: list[Item]
    has_more: bool
    next: str | None


class PageQuery(BaseModel):
    limit: int = 50
    after: str | None = None

    def cut(self, rows: list[Item], key: str) -> Page[Item]:
        """A page out of `limit + 1` rows."""
        has_more = len(rows) > self.limit
        rows = rows[: self.limit]
        return Page(data=rows, has_more=has_more, next=str(getattr(rows[-1], key)) if has_more else None)

    def of(self, items: Sequence[Item], key: str) -> Page[Item]:
        """A page out of a listing that is at hand as a whole."""
        start = 0
        if self.after is not None:
            keys = [str(getattr(item, key)) for item in items]
            start = keys.index(self.after) + 1 if self.after in keys else len(items)
        return self.cut(list(items[start : start + self.limit + 1]), key)


async def page_query(
    limit: Annotated[int, Query(ge=1, le=1000, description="rows a page")] = 50,
    after: Annotated[str | None, Query(max_length=64, description="`next` of the page before")] = None,
) -> PageQuery:
    return PageQuery(limit=limit, after=after)


class Service:
    """One running service. ``is_stopping`` is set once it has been asked to end: streams close, nothing is claimed."""

    def __init__(self, settings: Settings, database: Database, supervisor: Supervisor, refitter: Refitter) -> None:
        self.settings, self.database, self.supervisor, self.refitter = settings, database, supervisor, refitter
        self.is_stopping = False
        self.metrics = Metrics()
        self.metrics.watch(StoredCollector(database))
        self.metrics.watch(LauncherCollector(supervisor.seconds_since_tick, supervisor.nodes))
        refitter.on_ended = self.metrics.refit_ended
        self._guidelines: dict[str, Guideline] = {}
        self.recent_answers = RecentAnswers()
        self.answering = CapacityLimiter(_THREADS_THAT_ANSWER)

    def stop_begins(self) -> None:
        """Called as the service is asked to end, in the middle of whatever else it does: sets flags and nothing more."""
        self.is_stopping = True
        self.supervisor.halt()

    def guideline(self, guideline_id: str) -> Guideline | None:
        """A stored version. Versions never change, so they are kept in memory once read."""
        found = self._guidelines.get(guideline_id) or load_guideline(self.database, guideline_id)
        if found is not None:
            while len(self._guidelines) >= _LARGEST_CACHE:
                self._guidelines.pop(next(iter(self._guidelines)))
            self._guidelines[guideline_id] = found
        return found

    def manifest(self, corpus: str, *, pointer: str = "/corpus") -> Manifest:
        """A prepared corpus by name; a name cannot leave the corpora folder."""
        if re.fullmatch(NAME_PATTERN, corpus) is None:
            raise Problem.field(pointer, f"corpus is {corpus!r}, but names match {NAME_PATTERN}; use such a name")
        try:
            return read_manifest(self.settings.corpora_dir / corpus)
        except ValueError as error:
            raise Problem.field(pointer, str(error)) from None


async def get_service(request: Request) -> Service:
    """Async, because a plain dependency would be sent to a thread and back, for every request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
PageDep = Annotated[PageQuery, Depends(page_query)]
