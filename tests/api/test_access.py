"""Who gets in: keys and their scopes on every route, requests through proxies, and pages of other sites."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from app.api.access import FORWARDED_HEADERS
from app.api.scopes import SCOPE_OF_ROUTE, check_scopes, needed_for, walk
from app.main import StartError, create_app, open_database
from app.settings import Settings
from app.store import jobs as job_store
from app.store import keys as key_store
from app.store.ids import new_id
from app.store.keys import SCOPES
from app.store.tables import LOCAL, JobRow

Tokens = dict[str, str]
JOB_ACTIONS = ("cancel", "pause", "resume", "retry", "export")


def make_keys(settings: Settings, *names: str) -> Tokens:
    """A key a name, whose scope is the name up to a dash."""
    database = open_database(settings)
    tokens = {}
    for name in names:
        with database.write() as session:
            tokens[name] = key_store.create_key(session, name=name, scope=name.partition("-")[0], actor=LOCAL).token
    database.close()
    return tokens


@contextmanager
def opened(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def problem(answer: Any, status: int) -> str:
    """The detail of an answer that is the problem it should be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    detail: str = answer.json()["detail"]
    return detail


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Tokens]]:
    """A service that needs keys, and one of each scope."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("guarded"), num_slots=1, require_key=True)
    tokens = make_keys(settings, *SCOPES, "grow-other")
    with opened(settings) as client:
        yield client, tokens


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Tokens]]:
    """A service on loopback as it starts by default; keys exist, and none is needed."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("open"), num_slots=1)
    tokens = make_keys(settings, "read")
    with opened(settings) as client:
        yield client, tokens


def routes(client: TestClient) -> list[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def concrete(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", path)


# --- scopes --------------------------------------------------------------------------------------------------------


def test_every_route_has_one_scope_and_every_scope_a_route(guarded: tuple[TestClient, Tokens]) -> None:
    client, _ = guarded
    served = {f"{method} {path}" for method, path in [*routes(client), *walk(client.app.routes)]}  # type: ignore[attr-defined]
    assert served == set(SCOPE_OF_ROUTE)


def test_a_route_without_a_scope_is_not_served() -> None:
    router = APIRouter()
    router.delete("/everything")(lambda: None)
    with pytest.raises(AssertionError, match="DELETE /everything has no scope"):
        check_scopes(router.routes)


def test_each_route_takes_its_scope_and_none_below_it(guarded: tuple[TestClient, Tokens]) -> None:
    client, tokens = guarded
    for method, path in routes(client):
        need = SCOPE_OF_ROUTE[f"{method} {path}"]
        if path.endswith("/events"):  # a job that is there would stream; there is none
            assert need == "read"
        for scope in SCOPES:
            answer = client.request(method, concrete(path), headers=bearer(tokens[scope]))
            if need != "open" and SCOPES.index(scope) < SCOPES.index(need):
                assert f"takes scope {need}" in problem(answer, 403), (method, path, scope)
                assert f'scope="{need}"' in answer.headers["www-authenticate"]
            else:
                assert answer.status_code not in (401, 403), (method, path, scope, answer.text)
        without = client.request(method, concrete(path))
        if need == "open":
            assert without.status_code == 200, (method, path)
        else:
            assert "Authorization: Bearer" in problem(without, 401)
            assert without.headers["www-authenticate"].startswith("Bearer")


def test_paths_are_judged_as_the_router_takes_them(guarded: tuple[TestClient, Tokens]) -> None:
    client, tokens = guarded
    assert needed_for("HEAD", "/jobs") == "read"
    assert needed_for("POST", "/runs/import") == "grow"
    assert needed_for("GET", "/nothing") is None
    for path in ("/k%65ys", "/keys?x=/docs", "/keys#/docs", "//keys", "/keys/", "/docs/../keys", "/docs/%2e%2e/keys"):
        answer = client.get(path, headers=bearer(tokens["grow"]), follow_redirects=False)
        assert answer.status_code in (307, 403, 404), (path, answer.text)
        refused = client.get(path, follow_redirects=False)
        # A path of slashes alone is the front door, which only points at the pages.
        assert refused.status_code == 401 or refused.headers["location"] == "/ui/", path
    assert client.head("/docs").status_code == 200
    problem(client.get("/nothing"), 401)
    problem(client.get("/nothing", headers=bearer(tokens["read"])), 404)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/jobs"):
        pass


def test_a_bad_body_without_a_key_learns_nothing(guarded: tuple[TestClient, Tokens]) -> None:
    client, _ = guarded
    answer = client.post("/grow", content=b'{"half', headers={"content-type": "application/json"})
    assert "key" in problem(answer, 401)


@pytest.mark.parametrize("sent", ["Bearer", "Bearer ", "Bearer glk_no", "Basic YTpi", "glk_x", "Bearer \xff"])
def test_what_is_no_key_is_refused_even_where_none_is_needed(open_to_all: tuple[TestClient, Tokens], sent: str) -> None:
    client, _ = open_to_all
    answer = client.get("/jobs", headers={"authorization": sent.encode("latin-1")})
    assert "was revoked" in problem(answer, 401)
    assert "invalid_token" in answer.headers["www-authenticate"]


def test_the_contract_says_what_each_route_takes(
    guarded: tuple[TestClient, Tokens], open_to_all: tuple[TestClient, Tokens]
) -> None:
    for (client, _), optional in ((guarded, []), (open_to_all, [{}])):
        document = client.get("/openapi.json").json()
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for method, path in routes(client):
            operation, need = document["paths"][path][method.lower()], SCOPE_OF_ROUTE[f"{method} {path}"]
            if need == "open":
                assert operation["security"] == []
                continue
            assert operation["security"] == [{"key": [need]}, *optional]
            assert operation["description"].endswith(f"Scope: `{need}`.")
            for status in ("401", "403"):
                assert "application/problem+json" in operation["responses"][status]["content"]


# --- keys over HTTP, and the audit log -------------------------------------------------------------------------------


def test_admins_make_list_and_revoke_keys_and_all_of_it_is_audited(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, num_slots=1, require_key=True)
    admin = bearer(make_keys(settings, "admin")["admin"])
    with opened(settings) as client:
        new = client.post("/keys", json={"name": "ci", "scope": "plan"}, headers=admin)
        assert new.status_code == 201
        token = new.json()["token"]
        assert "token" not in client.get("/keys", headers=admin).text
        assert client.get("/jobs", headers=bearer(token)).status_code == 200
        assert "which a key in use has" in problem(
            client.post("/keys", json={"name": "ci", "scope": "plan"}, headers=admin), 422
        )
        assert "takes scope admin" in problem(
            client.post("/keys", json={"name": "mine", "scope": "admin"}, headers=bearer(token)), 403
        )
        assert client.delete("/keys/ci", headers=admin).json()["revoked_at"]
        problem(client.get("/jobs", headers=bearer(token)), 401)
        problem(client.delete("/keys/ci", headers=admin), 404)
        page = client.get("/audit", params={"limit": 2}, headers=admin).json()
        assert [(deed["actor_name"], deed["action"], deed["detail"]) for deed in page["data"]] == [
            ("admin", "key.revoke", "ci"),
            ("admin", "key.create", "ci, scope plan"),
        ]
        assert page["has_more"]
        (first,) = client.get("/audit", params={"after": page["next"]}, headers=admin).json()["data"]
        assert (first["actor"], first["actor_name"], first["detail"]) == (LOCAL, LOCAL, "admin, scope admin")
        assert client.get("/audit", params={"action": "key.revoke"}, headers=admin).json()["data"][0]["subject"]
        problem(client.get("/audit", params={"action": "odd"}, headers=admin), 422)
        keys = client.get("/keys", headers=admin).json()["data"]
        assert [(key["name"], key["scope"]) for key in keys] == [("ci", "plan"), ("admin", "admin")]


def job_of(client: TestClient, owner: str) -> str:
    """A job that nobody goes on with: it is paused."""
    database = client.app.state.service.database  # type: ignore[attr-defined]
    row = JobRow(
        id=new_id("job"), kind="growth", name="n", role="grown", state="paused", run_dir="/r", spec="{}",
        owner=owner,
    )  # fmt: skip
    with database.write() as session:
        job_store.add_job(session, row)
    return row.id


def test_another_keys_job_is_not_touched_below_admin(guarded: tuple[TestClient, Tokens]) -> None:
    client, tokens = guarded
    me = client.get("/keys", headers=bearer(tokens["admin"])).json()["data"]
    ids = {key["name"]: key["id"] for key in me}
    body = {"url": "file:///x/y"}
    for owner, name in ((ids["grow"], "another key"), (LOCAL, "without a key")):
        job = job_of(client, owner)
        for action in JOB_ACTIONS:
            answer = client.post(
                f"/jobs/{job}/{action}", json=body if action == "export" else None, headers=bearer(tokens["grow-other"])
            )
            assert name in problem(answer, 403), action
        assert client.get(f"/jobs/{job}", headers=bearer(tokens["read"])).json()["state"] == "paused"
    mine, taken = job_of(client, ids["grow"]), job_of(client, ids["grow"])
    assert client.post(f"/jobs/{mine}/cancel", headers=bearer(tokens["grow"])).json()["state"] == "cancelled"
    assert client.post(f"/jobs/{taken}/cancel", headers=bearer(tokens["admin"])).json()["owner"] == ids["grow"]
    for job, actor in ((mine, "grow"), (taken, "admin")):
        problem(client.post(f"/jobs/{job}/cancel", headers=bearer(tokens["grow"])), 409)
        (deed,) = client.get("/audit", params={"subject": job}, headers=bearer(tokens["admin"])).json()["data"]
        assert (deed["actor_name"], deed["action"], deed["detail"]) == (actor, "job.cancel", "it was paused")


def test_two_callers_may_choose_one_idempotency_key(guarded: tuple[TestClient, Tokens]) -> None:
    client, tokens = guarded
    facts = {
        "cohort": "c", "target_params": 1e6, "corpus": "web", "tokenizer": "bpe", "decision_dataset": "v",
    }  # fmt: skip
    opened_runs = [
        client.post("/runs", json=facts | {"name": name}, headers=bearer(tokens[key]) | {"Idempotency-Key": "first"})
        for key, name in (("grow", "a"), ("grow-other", "b"), ("grow", "a"))
    ]
    assert [answer.status_code for answer in opened_runs] == [200, 200, 200], opened_runs[0].text
    first, second, again = (answer.json()["run"]["run_id"] for answer in opened_runs)
    assert first == again != second
    deeds = client.get("/audit", params={"action": "run.open"}, headers=bearer(tokens["admin"])).json()["data"]
    assert [(deed["actor_name"], deed["subject"]) for deed in deeds] == [("grow-other", second), ("grow", first)]


# --- loopback, proxies, browsers ---------------------------------------------------------------------------------------


def test_on_loopback_no_key_is_needed_and_one_that_is_sent_counts(open_to_all: tuple[TestClient, Tokens]) -> None:
    client, tokens = open_to_all
    assert client.get("/audit").status_code == 200
    assert client.get("/jobs", headers=bearer(tokens["read"])).status_code == 200
    assert "takes scope admin" in problem(client.get("/audit", headers=bearer(tokens["read"])), 403)


@pytest.mark.parametrize("header", FORWARDED_HEADERS)
def test_what_a_proxy_forwards_needs_a_key(open_to_all: tuple[TestClient, Tokens], header: str) -> None:
    client, tokens = open_to_all
    assert header in problem(client.get("/jobs", headers={header: "203.0.113.9"}), 401)
    assert client.get("/jobs", headers={header: "203.0.113.9"} | bearer(tokens["read"])).status_code == 200
    assert client.get("/healthz", headers={header: "203.0.113.9"}).status_code == 200


def test_what_probes_may_ask_without_a_key_tells_no_path(
    guarded: tuple[TestClient, Tokens], open_to_all: tuple[TestClient, Tokens]
) -> None:
    assert guarded[0].get("/healthz").json()["data_dir"] is None
    assert open_to_all[0].get("/healthz").json()["data_dir"]


FORMS = ("text/plain", "application/x-www-form-urlencoded", "", "text/plain; application/json")


@pytest.mark.parametrize("kind", FORMS)
def test_json_under_the_name_of_a_form_is_refused(open_to_all: tuple[TestClient, Tokens], kind: str) -> None:
    client, _ = open_to_all
    for path in ("/recommend", "/runs/import", "/grow"):
        answer = client.post(path, content=b'{"bundled": true}', headers={"content-type": kind} if kind else {})
        assert "application/json" in problem(answer, 415)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(
    open_to_all: tuple[TestClient, Tokens], headers: dict[str, str]
) -> None:
    client, _ = open_to_all
    job = job_of(client, LOCAL)
    assert "--cors-origin" in problem(client.post(f"/jobs/{job}/cancel", headers=headers), 403)
    answer = client.post("/runs/import", files={"files": ("log", b"x")}, data={"options": "{}"}, headers=headers)
    problem(answer, 403)
    problem(client.delete("/keys/read", headers=headers), 403)
    assert client.get(f"/jobs/{job}").json()["state"] == "paused"
    for own in ({"origin": "http://127.0.0.1"}, {"sec-fetch-site": "same-origin"}, {}):
        assert client.post("/jobs/none/cancel", headers=own).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "user@evil.example", "*"])
def test_a_name_that_somebody_lets_point_here_is_refused(open_to_all: tuple[TestClient, Tokens], host: str) -> None:
    client, _ = open_to_all
    assert "--allowed-host" in problem(client.get("/healthz", headers={"host": host}), 400)


def test_names_of_loopback_are_known(open_to_all: tuple[TestClient, Tokens]) -> None:
    client, _ = open_to_all
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200, host


def test_listed_hosts_are_served_and_bring_keys_with_them(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, num_slots=1, allowed_hosts=("growth.example", "*.lab.example"))
    assert settings.needs_key
    with pytest.raises(StartError, match=r"--allowed-host asks for a key.*growthlaw keys create"):
        create_app(settings)
    make_keys(settings, "read")
    with opened(settings) as client:
        for host in ("growth.example", "a.lab.example:443", "127.0.0.1"):
            assert client.get("/healthz", headers={"host": host}).status_code == 200, host
            assert "this service needs a key" in problem(client.get("/jobs", headers={"host": host}), 401)
        for host in ("lab.example", "evil-lab.example", "growth.example.evil"):
            problem(client.get("/healthz", headers={"host": host}), 400)


def test_pages_of_listed_origins_call_the_service_and_others_read_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, num_slots=1, cors_origins=("https://dash.example",))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with opened(settings) as client:
        ours, other = {"origin": "https://dash.example"}, {"origin": "https://evil.example"}
        preflight = client.options("/grow", headers=ours | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://dash.example"
        assert "access-control-allow-credentials" not in preflight.headers
        assert "access-control-allow-origin" not in client.options("/grow", headers=other | asked).headers
        body = {"target_params": 7e9, "token_budget": 2e12}
        answer = client.post("/recommend", json=body, headers=ours)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://dash.example"
        problem(client.post("/recommend", json=body, headers=other), 403)
        # A refusal may be read by the page too, or it could not say what is wrong.
        refused = client.get("/jobs", headers=ours | bearer("glk_no"))
        assert refused.headers["access-control-allow-origin"] == "https://dash.example"
    with opened(Settings(data_dir=tmp_path / "closed", num_slots=1)) as client:
        assert not [name for name in client.get("/jobs", headers=ours).headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cors_origins": "*"},
        {"cors_origins": "https://*.example"},
        {"cors_origins": "https://dash.example/"},
        {"cors_origins": "dash.example"},
        {"cors_origins": "null"},
        {"allowed_hosts": "https://growth.example"},
        {"allowed_hosts": "growth.example:8000"},
        {"allowed_hosts": "a*"},
        {"ssl_certfile": "cert.pem"},
    ],
)
def test_settings_that_would_let_in_more_than_they_say_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**wrong)
    assert "give" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({}, False), ({"host": "localhost"}, False), ({"host": "::1"}, False), ({"host": "0.0.0.0"}, True),
        ({"host": "10.0.0.5"}, True), ({"require_key": True}, True), ({"allowed_hosts": "*"}, True),
        ({"cors_origins": "https://dash.example"}, False),
    ],
)  # fmt: skip
def test_when_a_key_is_needed(given: dict[str, Any], needs: bool) -> None:
    assert Settings(**given).needs_key is needs


def test_only_the_key_that_opened_a_run_and_admins_push_to_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, num_slots=1, require_key=True)
    tokens = make_keys(settings, "grow-mine", "grow-other", "admin")
    body = {"cohort": "mine", "name": "pushed", "target_params": 4e5, "decision_dataset": "validation"}
    with opened(settings) as client:
        run = client.post("/runs", json=body, headers=bearer(tokens["grow-mine"])).json()["run"]
        for seq, (name, status) in enumerate((("grow-mine", 200), ("grow-other", 403), ("admin", 200))):
            point = {
                "seq": seq,
                "tokens": 1000 * (seq + 1),
                "metric": "validation_loss",
                "dataset": "validation",
                "value": 4.0,
            }
            answer = client.post(
                f"/runs/{run['run_id']}/points", json={"points": [point]}, headers=bearer(tokens[name])
            )
            assert answer.status_code == status, (name, answer.text)
            if status == 403:
                assert "was launched with another key" in answer.json()["detail"]
        points = client.get(f"/runs/{run['run_id']}/points", headers=bearer(tokens["admin"])).json()["data"]
        assert [point["seq"] for point in points] == [0, 2]


def test_a_database_that_does_not_answer_lets_nobody_in(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, num_slots=1, require_key=True)
    token = make_keys(settings, "read")["read"]
    with (
        opened(settings) as client,
        contextlib.closing(sqlite3.connect(tmp_path / "growthlaw.sqlite3", isolation_level=None)) as other,
    ):
        other.execute("ALTER TABLE api_keys RENAME TO away")
        assert "did not answer" in problem(client.get("/jobs", headers=bearer(token)), 503)
        other.execute("ALTER TABLE away RENAME TO api_keys")
        assert client.get("/jobs", headers=bearer(token)).status_code == 200
