"""The prequential loop over a real store: who predicts what and when; what is promoted, rejected, void, waiting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from arrivals import COHORT, HELPS, HURTS, Truth, arrive, frame_of
from sqlalchemy import delete, text

from app.guidelines import refine as refine_module
from app.guidelines.refine import refine
from app.guidelines.said import ACTIVE, CANDIDATE, DELTA, scores_of_version
from app.guidelines.versions import activate_by_hand, load_guideline, newer_answer
from app.store import guidelines as guideline_store
from app.store import predictions as prediction_store
from app.store import runs as run_store
from app.store.database import MIGRATIONS_DIR, Database, sqlite_url
from app.store.tables import GuidelineRow, PredictionRow, RunRow
from fitting.comparison import compare_versions
from fitting.prequential.cases import cases
from fitting.recommendation import Request
from fitting.rules import RULES

WIDTHS, BUDGETS = (48, 96), (5, 10, 20)


def refined(database: Database) -> GuidelineRow:
    """The version that a refit stored."""
    done = refine(database, COHORT, outer_scores=False)
    assert done.outcome == "stored", done.detail
    with database.read() as session:
        row = guideline_store.get_guideline(session, str(done.guideline_id))
    assert row is not None
    return row


def predictions(database: Database, **wanted: Any) -> list[PredictionRow]:
    with database.read() as session:
        rows = prediction_store.list_predictions(session, COHORT)
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def active(database: Database) -> GuidelineRow | None:
    with database.read() as session:
        return guideline_store.active_guideline(session, COHORT)


def remove(database: Database, *run_ids: str) -> None:
    with database.write() as session:
        session.execute(delete(RunRow).where(RunRow.run_id.in_(run_ids)))


def grid(
    truth: Truth, widths: tuple[int, ...] = WIDTHS, shares: tuple[float, ...] = (0.05, 0.3)
) -> list[dict[str, Any]]:
    return [truth.grown(width, budget, share) for width in widths for budget in BUDGETS for share in shares]


def test_a_run_is_predicted_once_by_every_version_that_had_not_seen_it_and_by_every_rule(database: Database) -> None:
    truth = Truth(HELPS)
    arrive(database, truth.controls((48, 64), (5, 10)))
    first = refined(database)
    assert (first.version, first.is_active, first.outcome) == (1, True, "first")
    assert predictions(database) == []  # a version never speaks of its own runs, and rules speak of growths
    grown, again = truth.grown(48, 5, 0.1), truth.scratch(48, 20)
    arrive(database, [grown, again])
    second = refined(database)
    assert second.is_active
    of_grown = predictions(database, run_id=grown["run_id"])
    assert {row.predictor for row in of_grown} == {*RULES, ACTIVE}
    (case,) = cases(frame_of([*truth_rows(database)]))
    for row in of_grown:
        assert (row.quantity, row.observed, row.void_reason) == (DELTA, case.delta_nats, None)
        assert row.guideline_id == (first.id if row.predictor == ACTIVE else "")
    never = next(row for row in of_grown if row.predictor == "never")
    assert (never.predicted, never.score) == (0.0, pytest.approx(abs(case.delta_nats)))
    # Nothing new: nothing is predicted again, fitted again or stored.
    before = [(row.run_id, row.predictor, row.created_at) for row in predictions(database)]
    done = refine(database, COHORT, outer_scores=False)
    assert (done.outcome, done.guideline_id) == ("unchanged", second.id)
    assert [(row.run_id, row.predictor, row.created_at) for row in predictions(database)] == before


def truth_rows(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        return run_store.cohort_frame(session, COHORT).to_dict("records")


def test_a_grown_run_waits_and_is_predicted_when_its_control_ends(sqlite: Database) -> None:
    truth = Truth(HELPS)
    arrive(sqlite, truth.controls((48, 64), (5, 10)))
    refined(sqlite)
    grown = truth.grown(96, 5, 0.1)
    arrive(sqlite, [grown])
    lists_it = refined(sqlite)
    assert json.loads(lists_it.report)["waiting_run_ids"] == [grown["run_id"]]
    done = refine(sqlite, COHORT, outer_scores=False)
    assert done.outcome == "unchanged"
    assert "1 grown run(s) wait" in done.detail
    assert predictions(sqlite, run_id=grown["run_id"]) == []
    arrive(sqlite, [truth.scratch(96, 5)])
    version = refined(sqlite)
    # The version that listed it had seen nothing of its delta, and so speaks of it.
    of_grown = predictions(sqlite, run_id=grown["run_id"])
    assert {row.predictor for row in of_grown} == {*RULES, ACTIVE}
    assert lists_it.id in {row.guideline_id for row in of_grown}
    body = load_guideline(sqlite, version.id)
    assert body is not None
    assert grown["run_id"] in body.run_ids
    assert json.loads(version.report)["waiting_run_ids"] == []


@pytest.fixture(scope="module")
def mature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Path]:
    """A database file whose cohort has a fitted active version of growth that helps, and the truth that made it."""
    folder = tmp_path_factory.mktemp("mature")
    database = Database(sqlite_url(folder))
    database.migrate()
    truth = Truth(HELPS)
    arrive(database, truth.controls(WIDTHS, BUDGETS))
    refined(database)
    arrive(database, grid(truth))
    row = refined(database)
    assert (row.version, row.is_active) == (2, True)
    database.close()
    return truth, folder


@pytest.fixture
def grown_up(mature: tuple[Truth, Path], tmp_path: Path) -> Iterator[tuple[Truth, Database]]:
    """A copy of the mature database, with a truth that goes on from where that one stood."""
    truth, folder = mature
    (tmp_path / "growthlaw.sqlite3").write_bytes((folder / "growthlaw.sqlite3").read_bytes())
    later = Truth(truth.growth, seed=1)
    later.count = truth.count + 1000
    database = Database(sqlite_url(tmp_path))
    yield later, database
    database.close()


def batch(truth: Truth, share: float) -> list[dict[str, Any]]:
    return [truth.grown(width, budget, share) for width in WIDTHS for budget in BUDGETS]


def test_a_refit_that_learned_of_a_moved_truth_is_promoted(grown_up: tuple[Truth, Database]) -> None:
    """Growth begins to hurt: the version that never saw that goes on promising gains, the refits learn, and one goes in."""
    truth, database = grown_up
    truth.growth = HURTS
    arrive(database, batch(truth, 0.1))
    waits = refined(database)
    assert (waits.outcome, waits.is_active) == ("waits", False)  # both had been the same version until now
    arrive(database, batch(truth, 0.2))
    row = refined(database)
    report = json.loads(row.report)
    assert (row.outcome, row.is_active) == ("promoted", True), row.reason
    compared = report["comparison"]
    assert compared["interval_nats"][1] < 0
    assert (compared["num_cases"], compared["num_families"]) == (6, 6)
    old = [one for one in predictions(database, predictor=ACTIVE, quantity=DELTA) if one.run_id in moved_ids(truth, 6)]
    new = predictions(database, predictor=CANDIDATE, quantity=DELTA)
    difference = np.mean([one.score or 0 for one in new]) - np.mean([one.score or 0 for one in old])
    assert compared["difference_nats"] == pytest.approx(difference)
    assert {one.guideline_id for one in new} == {waits.id}
    standing = report["standings"]
    assert standing["candidate"]["score_nats"] < standing[ACTIVE]["score_nats"]
    assert standing["never"]["num_cases"] == standing[ACTIVE]["num_cases"] == 24
    current = active(database)
    assert current is not None
    assert current.id == row.id


def moved_ids(truth: Truth, count: int) -> set[str]:
    return {f"run_{number:04d}" for number in range(truth.count - count + 1, truth.count + 1)}


def test_a_refit_on_broken_runs_is_rejected_and_stays_addressable(grown_up: tuple[Truth, Database]) -> None:
    """Six runs of a broken set-up end a tenth of a nat too high; the refit believes them; the next sound runs tell."""
    truth, database = grown_up
    before = active(database)
    assert before is not None
    broken = batch(truth, 0.12)
    arrive(database, [row | {"final_loss": row["final_loss"] + 0.1} for row in broken])
    misled = refined(database)
    assert misled.outcome == "waits"
    arrive(database, batch(truth, 0.2))
    row = refined(database)
    assert (row.outcome, row.is_active) == ("rejected", False), row.reason
    assert "so version 2 stays" in row.reason
    assert json.loads(row.report)["comparison"]["interval_nats"][0] > 0
    current = active(database)
    assert current is not None
    assert current.id == before.id
    assert load_guideline(database, row.id) is not None

    # The same rejected version, put in charge by hand, stays there whatever the scores say, until it is released.
    assert activate_by_hand(database, row.id, pinned=True) is not None
    arrive(database, batch(truth, 0.15))
    pinned = refined(database)
    assert (pinned.outcome, pinned.is_active) == ("pinned", False)
    asked = load_guideline(database, before.id)
    assert asked is not None
    request = Request(target_params=4e5, token_budget=4e6)
    newer = newer_answer(database, asked, request)
    assert newer is not None
    assert (newer.guideline_id, newer.version) == (row.id, row.version)
    asked_now = load_guideline(database, row.id)
    assert asked_now is not None
    assert newer_answer(database, asked_now, request) is None
    released = activate_by_hand(database, before.id, pinned=False)
    assert released is not None
    assert (released.is_active, released.is_pinned) == (True, False)
    assert newer_answer(database, asked, request) is None
    assert activate_by_hand(database, "gl_nowhere", pinned=True) is None

    changes = compare_versions(asked, asked_now)
    assert set(changes.runs_added) == {row["run_id"] for row in broken} | {
        one.run_id for one in predictions(database, guideline_id=misled.id)
    }
    assert changes.runs_removed == ()
    assert sum(moved.after for moved in changes.weights.values()) == pytest.approx(1)
    for one in changes.parameters:
        for side in (one.before, one.after):
            assert side is None or side.low <= side.median <= side.high
    assert len(changes.questions) == 3
    assert changes.questions[-1].compute_flops == pytest.approx(4 * changes.questions[-2].compute_flops)
    nothing = compare_versions(asked, asked)
    assert (nothing.runs_added, nothing.deltas_nats) == ((), {})
    assert all(one.before == one.after for one in (*nothing.parameters, *nothing.questions))


def test_a_version_that_rests_on_removed_or_corrected_runs_is_replaced_at_once(
    grown_up: tuple[Truth, Database],
) -> None:
    truth, database = grown_up
    arrive(database, batch(truth, 0.1))
    refined(database)
    scored = predictions(database, predictor=ACTIVE, quantity=DELTA)
    gone = next(row.run_id for row in scored if row.guideline_id == scored[0].guideline_id)
    remove(database, gone)
    row = refined(database)
    assert (row.outcome, row.is_active) == ("replaces_withdrawn", True)
    assert gone in row.reason
    voided = predictions(database, run_id=gone)
    assert {one.void_reason for one in voided} == {"the run was removed"}
    assert {one.run_id for one in predictions(database, void_reason=None)}.isdisjoint({gone})
    assert json.loads(row.report)["standings"][ACTIVE]["num_cases"] == len(scored) - 1

    # A corrected loss moves what was observed and its score, never what was predicted.
    kept = next(one for one in predictions(database, predictor=ACTIVE, quantity=DELTA) if one.void_reason is None)
    with database.write() as session:
        run = run_store.get_run(session, kept.run_id)
        assert run is not None
        assert run.final_loss is not None
        run.final_loss += 0.01
    row = refined(database)
    assert (row.outcome, "corrected runs" in row.reason) == ("replaces_withdrawn", True)
    (now,) = predictions(database, run_id=kept.run_id, predictor=ACTIVE)
    assert now.observed == pytest.approx(kept.observed + 0.01)
    assert (now.predicted, now.created_at) == (kept.predicted, kept.created_at)
    assert now.score != kept.score
    assert now.void_reason is None

    # Another design is another run: what was said of the old one is void.
    with database.write() as session:
        run = run_store.get_run(session, kept.run_id)
        assert run is not None
        run.growth_timing_tokens *= 1.01
    refined(database)
    (now,) = predictions(database, run_id=kept.run_id, predictor=ACTIVE)
    assert now.void_reason == "the run was corrected: another design was predicted"
    with database.read() as session:
        rows = prediction_store.list_predictions(session, COHORT)
    own = scores_of_version(rows, kept.guideline_id)
    counted = [
        one for one in rows if one.guideline_id == kept.guideline_id and one.quantity == DELTA and not one.void_reason
    ]
    assert own["num_deltas"] == len(counted)
    assert own["delta_score_nats"] == pytest.approx(np.mean([one.score for one in counted]))


def test_nothing_answers_when_every_run_is_gone(sqlite: Database) -> None:
    truth = Truth(HELPS)
    rows = [truth.scratch(48, 5), truth.grown(48, 5, 0.1)]
    arrive(sqlite, rows)
    version = refined(sqlite)
    remove(sqlite, *(row["run_id"] for row in rows))
    done = refine(sqlite, COHORT, outer_scores=False)
    assert done.outcome == "impossible"
    assert active(sqlite) is None
    assert {row.void_reason for row in predictions(sqlite)} == {"the run was removed"}
    # The same runs again are fitted again and answer again; what was void stays void.
    arrive(sqlite, rows)
    again = refined(sqlite)
    assert (again.version, again.outcome, again.is_active) == (2, "first", True)
    assert load_guideline(sqlite, version.id) is not None
    assert {row.void_reason for row in predictions(sqlite)} == {"the run was removed"}


def test_no_lock_is_held_while_fitting(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others write while a fit runs; a version activated meanwhile is seen before the decision is stored."""
    truth = Truth(HELPS)
    arrive(sqlite, [truth.scratch(48, 5), truth.grown(48, 5, 0.1)])
    first = refined(sqlite)
    arrive(sqlite, [truth.grown(48, 5, 0.2)])
    fit, fits = refine_module.fit_guideline, []

    def fit_while_others_write(*args: Any, **options: Any) -> Any:
        fits.append(1)
        other = Database(sqlite.engine.url.render_as_string(hide_password=False))
        assert activate_by_hand(other, first.id, pinned=True) is not None
        other.close()
        return fit(*args, **options)

    monkeypatch.setattr(refine_module, "fit_guideline", fit_while_others_write)
    row = refined(sqlite)
    assert (row.outcome, row.is_active) == ("pinned", False)
    assert len(fits) == 1  # decided anew, not fitted anew


def test_guidelines_go_through_0004_and_back(database_url: str) -> None:
    old = Database(database_url)
    old.migrate("0003")
    with old.engine.begin() as connection:
        connection.execute(text("INSERT INTO cohorts VALUES ('c', '{}', 'h', 'm', 'd', 't')"))
        for version in (1, 2):
            connection.execute(
                text(
                    "INSERT INTO guidelines (id, cohort, version, is_active, num_runs, data_hash, reason, body, created_at) "
                    "VALUES (:id, 'c', :version, :active, 3, 'h', 'fitted', '{}', 't')"
                ),
                {"id": f"gl_{version}", "version": version, "active": version == 2},
            )
    old.migrate()
    with old.read() as session:
        row = guideline_store.active_guideline(session, "c")
        assert row is not None
        assert (row.id, row.outcome, row.report, row.rows_hash, row.is_pinned) == ("gl_2", "newest", "{}", None, False)
    assert activate_by_hand(old, "gl_1", pinned=True) is not None
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with old.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    with old.engine.begin() as connection:
        found = connection.execute(text("SELECT id, is_active FROM guidelines ORDER BY id")).all()
        assert [(one.id, bool(one.is_active)) for one in found] == [("gl_1", True), ("gl_2", False)]
    old.close()
