"""The store: an import is whole or not at all, and older rows keep their points through the migration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.ingest.imported import ImportedPoint, ImportedRun
from app.ingest.storing import import_runs
from app.store import runs as run_store
from app.store.cohorts import CohortMismatch
from app.store.database import MIGRATIONS_DIR, Database, sqlite_url
from fitting.errors import InputError
from fitting.table import COLUMNS


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path_factory.mktemp("store")))
    opened.migrate()
    yield opened
    opened.close()


def run_of(
    name: str, *, cohort: str = "c", loss: float = 3.0, tokenizer: str = "bpe", params: float = 1e6
) -> ImportedRun:
    header: dict[str, Any] = {column: None for column in COLUMNS if column not in ("run_id", "source", "created_at")}
    header |= {
        "cohort": cohort, "name": name, "status": "finished", "target_params": params, "growth_factor": 1.0, "is_final": True,
        "growth_timing_tokens": 0.0, "grown_tokens": 2e7, "final_loss": loss, "compute_flops": 6 * params * 2e7,
    }  # fmt: skip
    point = ImportedPoint(
        phase="single", step=1, tokens=20_000_000, compute_flops=1.2e14, metric="validation_loss", dataset="web", value=loss,
        unit="nats", time="",
    )  # fmt: skip
    return ImportedRun(
        header=header, reason="", points=(point,), wasted_flops=0.0, recipe={"tokenizer": tokenizer},
        decision_metric="validation_loss", decision_dataset="web", provenance={},
    )  # fmt: skip


def rows(database: Database, *tables: str) -> list[int]:
    with database.read() as session:
        return [
            session.scalar(text(f"SELECT count(*) FROM {table}")) or 0
            for table in ("cohorts", "runs", "points", *tables)
        ]


# One of several runs may be wrong: another recipe, a count in billions, a loss worse than any, a name that stands.
changes = st.sampled_from([{}, {"tokenizer": "other"}, {"params": 7.0}, {"loss": -1.0}, {"name": "stands"}])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.tuples(st.floats(2, 4), changes), min_size=1, max_size=4), dry_run=st.booleans())
def test_an_import_is_whole_or_nothing(database: Database, wanted: list[tuple[float, Any]], dry_run: bool) -> None:
    import_runs(database, [run_of("stands")])
    before = rows(database, "audit")
    runs = [
        run_of(**{"name": f"{loss!r}-{place}", "loss": loss} | change) for place, (loss, change) in enumerate(wanted)
    ]
    try:
        done = import_runs(database, runs, dry_run=dry_run)
    except (InputError, CohortMismatch):
        assert rows(database, "audit") == before
        return
    added = sum(stored.outcome == "added" for stored in done)
    after = rows(database, "audit")
    if dry_run:
        assert after == before
    else:
        # A run, its one point and who imported it.
        assert [now - then for now, then in zip(after[1:], before[1:], strict=True)] == [added] * 3
        assert {stored.outcome for stored in import_runs(database, runs)} == {"known"}


def test_older_rows_and_their_points_go_forward_and_back(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate("0002")
    with database.write() as session:
        session.execute(text("INSERT INTO cohorts VALUES ('c', '{}', 'h', 'validation_loss', 'web', 't')"))
        session.execute(
            text(
                "INSERT INTO runs (run_id, cohort, source, name, status, target_params, growth_factor, growth_timing_tokens, "
                "grown_tokens, is_final, created_at, reason) "
                "VALUES ('r', 'c', 'job', 'n', 'finished', 1e6, 1, 0, 1e7, 1, 't', '')"
            )
        )
        session.execute(text("INSERT INTO points VALUES ('r', 0, 'single', 1, 1.0, 'm', 'd', 1.0, 'nats', 't')"))
    database.migrate()
    with database.read() as session:
        run = run_store.get_run(session, "r")
        assert run is not None
        assert (run.wasted_flops, run.provenance, run.content_hash, run.request_key) == (0.0, "", None, None)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    assert rows(database) == [1, 1, 1]
    database.close()


def test_a_hundred_thousand_points_are_stored_as_they_are_on_each_database(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    points = tuple(
        ImportedPoint(
            "single", seq, seq * 100 + 100, seq * 6e8, "validation_loss", 'web "x", \\N\tü', value, "nats", "t"
        )
        for seq, value in enumerate([1 / 3, -1.0, 1e-300, 1.7976931348623157e308] + [2.0] * 99_996)
    )
    run = replace(run_of("many"), points=points)
    assert import_runs(database, [run])[0].num_points == 100_000
    with database.read() as session:
        (row,) = run_store.list_runs(session, limit=10)
        stored = run_store.list_points(session, row.run_id, limit=4)
        assert [(p.seq, p.tokens, p.compute_flops, p.dataset, p.value) for p in stored] == [
            (seq, p.tokens, p.compute_flops, p.dataset, p.value) for seq, p in enumerate(points[:4])
        ]
        assert run_store.last_seq(session, row.run_id) == 99_999
    assert import_runs(database, [run])[0].outcome == "known"
    # A stream that breaks in the middle leaves nothing of it.
    broken = ((row.run_id, seq, "single", 1, 1.0, "m", "", 1 / (60_000 - seq), "", "") for seq in range(70_000))

    def copy_anew() -> None:
        with database.write() as session:
            run_store.delete_points(session, row.run_id)
            run_store.copy_points(session, broken)

    with pytest.raises(ZeroDivisionError):
        copy_anew()
    with database.read() as session:
        assert run_store.last_seq(session, row.run_id) == 99_999
    database.close()
