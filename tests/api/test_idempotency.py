"""One piece of code for `Idempotency-Key`: the same answer for the same body, 409 for another, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from app.api.idempotency import answered_before, remember, request_hash
from app.api.problems import Problem
from app.store.database import Database


class Body(BaseModel):
    cohort: str
    later: int = 1


class Answer(BaseModel):
    id: str


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


def test_an_answer_is_given_again_and_another_body_is_refused(database: Database) -> None:
    with database.write() as session:
        assert answered_before(session, "/refit", "k", Body(cohort="a")) is None
        remember(session, "/refit", "k", Body(cohort="a"), Answer(id="1"))
        remember(session, "/refit", None, Body(cohort="a"), Answer(id="2"))
    with database.read() as session:
        stored = answered_before(session, "/refit", "k", Body(cohort="a"))
        assert stored is not None
        assert Answer.model_validate_json(stored) == Answer(id="1")
        assert answered_before(session, "/other", "k", Body(cohort="a")) is None
        assert answered_before(session, "/refit", None, Body(cohort="a")) is None
        with pytest.raises(Problem, match="another body") as caught:
            answered_before(session, "/refit", "k", Body(cohort="b"))
        assert caught.value.status == 409


def test_what_is_not_committed_was_not_answered(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            remember(session, "/refit", "k", Body(cohort="a"), Answer(id="1"))
            raise RuntimeError("the thing itself failed")

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert answered_before(session, "/refit", "k", Body(cohort="a")) is None


def test_a_body_hashes_as_before_a_field_came() -> None:
    class Older(BaseModel):
        cohort: str

    assert request_hash(Body(cohort="a"), later_fields=("later",)) == request_hash(Older(cohort="a"))
    assert request_hash(Body(cohort="a", later=2), later_fields=("later",)) != request_hash(Older(cohort="a"))
