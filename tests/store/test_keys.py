"""Keys and the audit log on the real SQLite and a real PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from app.store import audit
from app.store import jobs as job_store
from app.store import keys as key_store
from app.store.database import MIGRATIONS_DIR, Database
from app.store.tables import LOCAL, KeyRow
from fitting.errors import InputError


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


def made(database: Database, name: str = "ci", scope: str = "grow") -> key_store.NewKey:
    with database.write() as session:
        return key_store.create_key(session, name=name, scope=scope, actor=LOCAL)


def test_a_key_is_known_by_its_token_alone_and_only_a_hash_is_stored(database: Database) -> None:
    key, other = made(database), made(database, "other")
    assert key.token.startswith(f"glk_{key.row.id.removeprefix('key_')}_")
    secret = key.token[len("glk_") + 26 + 1 :]
    assert len(secret) == 43, "32 random bytes in base64"
    with database.read() as session:
        found = key_store.key_of_token(session, key.token)
        assert found is not None
        assert (found.id, found.name, found.scope) == (key.row.id, "ci", "grow")
        swapped = key.token[:30] + other.token[30:]
        for wrong in (key.token[:-1], key.token + "x", swapped, key.token.upper(), "glk_", "", "x" * 10_000, "\x00"):
            assert key_store.key_of_token(session, wrong) is None
    with database.engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            stored = str(connection.execute(text(f"SELECT * FROM {table}")).all())
            assert secret not in stored, table
        hashes = connection.execute(text("SELECT token_hash FROM api_keys ORDER BY id")).scalars().all()
    assert hashes == [hashlib.sha256(one.token.encode()).hexdigest() for one in (key, other)]
    assert len({made(database, f"k{place}").token for place in range(20)}) == 20


def test_a_revoked_key_is_none_and_its_name_is_free(database: Database) -> None:
    first = made(database)
    with pytest.raises(InputError, match="which a key in use has"):
        made(database)
    with database.write() as session:
        assert key_store.revoke_key(session, "ci", actor=LOCAL) is not None
    with database.write() as session:
        assert key_store.revoke_key(session, "ci", actor=LOCAL) is None
        assert not key_store.any_key_in_use(session)
        assert key_store.key_of_token(session, first.token) is None
    second = made(database)
    with database.write() as session:
        assert key_store.key_of_token(session, second.token) is not None
        revoked = key_store.revoke_key(session, second.row.id, actor=second.row.id)
        assert revoked is not None
        assert revoked.id == second.row.id
    with database.read() as session:
        assert [row.id for row in key_store.list_keys(session, limit=10)] == [second.row.id, first.row.id]
        deeds = [(row.actor, row.action, row.subject) for row in audit.list_audit(session, limit=10)]
    assert deeds == [
        (second.row.id, "key.revoke", second.row.id),
        (LOCAL, "key.create", second.row.id),
        (LOCAL, "key.revoke", first.row.id),
        (LOCAL, "key.create", first.row.id),
    ]


@pytest.mark.parametrize(
    ("name", "scope", "field"),
    [("Ci", "read", "name"), ("", "read", "name"), ("key_x", "read", "name"), ("ci", "root", "scope")],
)
def test_a_wrong_name_or_scope_makes_no_key(database: Database, name: str, scope: str, field: str) -> None:
    with pytest.raises(InputError) as caught:
        made(database, name, scope)
    assert caught.value.field == field
    with database.read() as session:
        assert key_store.list_keys(session, limit=1) == audit.list_audit(session, limit=1) == []


def test_each_scope_includes_those_below_it() -> None:
    table = {(have, need): key_store.includes(have, need) for have in key_store.SCOPES for need in key_store.SCOPES}
    assert key_store.SCOPES == ("read", "plan", "grow", "admin")
    for (have, need), may in table.items():
        assert may == (key_store.SCOPES.index(have) >= key_store.SCOPES.index(need)), (have, need)


def test_a_deed_and_its_record_stand_or_fall_together(database: Database) -> None:
    def make_and_fail() -> None:
        with database.write() as session:
            key_store.create_key(session, name="ci", scope="read", actor=LOCAL)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        make_and_fail()
    with database.read() as session:
        assert audit.list_audit(session, limit=10) == []
        assert key_store.list_keys(session, limit=10) == []


def test_the_audit_log_is_asked_by_actor_action_and_subject(database: Database) -> None:
    with database.write() as session:
        for place in range(5):
            audit.record(session, actor=f"key_{place % 2}", action="job.launch", subject=f"job_{place}")
        audit.record(session, actor="key_0", action="job.cancel", subject="job_3", detail="torn \x00 text")
    with database.read() as session:
        assert [row.subject for row in audit.list_audit(session, actor="key_1", limit=9)] == ["job_3", "job_1"]
        assert [row.action for row in audit.list_audit(session, subject="job_3", limit=9)] == [
            "job.cancel",
            "job.launch",
        ]
        (cancel,) = audit.list_audit(session, action="job.cancel", limit=9)
        page = audit.list_audit(session, before_id=cancel.id, limit=2)
        assert [row.subject for row in page] == ["job_4", "job_3"]


def test_jobs_and_their_stories_go_through_0004_and_back(database_url: str) -> None:
    old = Database(database_url)
    old.migrate("0003")
    with old.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (id, kind, name, role, state, reason, priority, engine, device, num_processes, num_nodes, "
                "run_dir, spec, num_attempts, num_deaths, metrics_offset, events_offset, created_at) VALUES ('job_a', "
                "'growth', 'n', 'grown', 'running', '', 0, 'local', 'cpu', 1, 1, '/r', '{}', 1, 0, 7, 8, 't')"
            )
        )
        connection.execute(
            text("INSERT INTO job_events (job_id, time, event, message) VALUES ('job_a', 't', 'queued', 'm')")
        )
    old.migrate()
    with old.write() as session:
        job = job_store.get_job(session, "job_a")
        assert job is not None
        assert job.owner == LOCAL
        assert len(job_store.list_events(session, "job_a")) == 1
        session.add(KeyRow(id="key_a", name="a", scope="read", token_hash="h"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with old.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    with old.engine.begin() as connection:
        assert "api_keys" not in inspect(connection).get_table_names()
        assert connection.execute(text("SELECT count(*) FROM job_events")).scalar() == 1
        assert "owner" not in [column["name"] for column in inspect(connection).get_columns("jobs")]
    old.close()
