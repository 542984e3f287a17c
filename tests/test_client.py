"""The Python client: what it returns, what it sends again and what never, and streams over a service that dies."""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from fastapi.testclient import TestClient
from flaky_server import Answer, by_script, dropping_proxy
from job_checks import check_taken_in_once

from app import answers
from app.client import Growthlaw, NoService, Refused, ServiceError
from app.main import create_app
from app.settings import Settings
from app.transport import FIRST_CONTACT_SECONDS, retry_after

Body = Callable[..., dict[str, Any]]
UNAVAILABLE, GATEWAY, DROPPED = Answer(503), Answer(502, b"<html>"), Answer(0)
GROWTH = Answer(202, json.dumps({"group_id": "g", "budget_flops": 1.0, "arms": [], "warnings": []}).encode())
PAUSED = Answer(200, json.dumps({"id": "job_x", "state": "paused"}).encode())


# --- what is sent again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [[DROPPED], [UNAVAILABLE], [GATEWAY], [Answer(504)], [Answer(429)], [DROPPED, UNAVAILABLE, GATEWAY]],
    ids=["dropped", "503", "502", "504", "429", "three"],
)
def test_what_starts_something_is_sent_again_under_one_key(trouble: list[Answer]) -> None:
    with by_script([*trouble, GROWTH]) as server, Growthlaw(server.url) as client:
        assert client.grow({"name": "n"}).group_id == "g"
        assert client.grow({"name": "n"}).group_id == "g"
    keys = [seen.headers["Idempotency-Key"] for seen in server.seen]
    assert len(keys) == len(trouble) + 2
    assert len(set(keys[:-1])) == 1, "one call, one key"
    assert keys[-1] != keys[0], "another call, another key"
    assert {seen.body for seen in server.seen} == {b'{"name":"n"}'}


@pytest.mark.parametrize("trouble", [DROPPED, GATEWAY, Answer(504)], ids=["dropped", "502", "504"])
def test_what_may_have_been_done_and_bears_no_key_is_sent_once(trouble: Answer) -> None:
    with (
        by_script([trouble, PAUSED]) as server,
        Growthlaw(server.url) as client,
        pytest.raises((NoService, Refused)),
    ):
        client.pause("job_x")
    assert len(server.seen) == 1


def test_what_the_service_says_it_did_not_do_is_sent_again() -> None:
    with by_script([UNAVAILABLE, Answer(429), PAUSED]) as server, Growthlaw(server.url) as client:
        assert client.pause("job_x").state == "paused"
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 507])
def test_a_refusal_is_told_at_once(status: int) -> None:
    said = Answer(status, json.dumps({"title": "t", "status": status, "detail": "why"}).encode())
    with by_script([said]) as server, Growthlaw(server.url) as client, pytest.raises(Refused, match="why") as caught:
        client.grow({})
    assert caught.value.status == status
    assert len(server.seen) == 1


def test_retry_after_is_honoured() -> None:
    with by_script([Answer(429, headers={"Retry-After": "1"}), GROWTH]) as server, Growthlaw(server.url) as client:
        client.grow({})
    first, second = server.seen
    assert second.at - first.at >= 1
    # Longer than the caller is willing to wait: it is told now.
    late = Answer(503, b'{"detail": "later"}', {"Retry-After": "3600"})
    with by_script([late]) as server, Growthlaw(server.url) as client, pytest.raises(Refused, match="later"):
        client.grow({})
    assert len(server.seen) == 1


def test_retry_after_as_a_date() -> None:
    said = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < retry_after({"retry-after": said}) <= 100
    assert retry_after({"retry-after": email.utils.formatdate(0)}) == 0
    assert retry_after({"retry-after": "soon"}) == retry_after({}) == 0


def test_trouble_that_stays_is_told_in_the_end() -> None:
    with by_script([DROPPED]) as server, Growthlaw(server.url, retry_seconds=0.5) as client:
        with pytest.raises(NoService, match="growthlaw serve"):
            client.jobs()
        assert len(server.seen) > 1
    with by_script([DROPPED]) as server, Growthlaw(server.url, retry_seconds=0) as client:
        with pytest.raises(NoService):
            client.jobs()
        assert len(server.seen) == 1
    with by_script([GATEWAY]) as server, Growthlaw(server.url, retry_seconds=0.3) as client:
        with pytest.raises(Refused, match="HTTP 502"):
            client.jobs()
        assert len(server.seen) > 1
    with by_script([Answer(200, b"<html>")]) as server, Growthlaw(server.url) as client:
        with pytest.raises(ServiceError, match="not JSON"):
            client.jobs()
        assert len(server.seen) == 1


def test_a_port_where_nothing_listens_is_tried_for_a_moment() -> None:
    began = time.monotonic()
    with pytest.raises(NoService, match="growthlaw serve"), Growthlaw(f"http://127.0.0.1:{free_port()}") as client:
        client.pause("job_x")
    assert time.monotonic() - began >= FIRST_CONTACT_SECONDS / 4, "it was tried more than once"


def test_the_key_travels_as_a_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTHLAW_API_KEY", "glk_environment")
    with by_script([Answer()]) as server:
        for given, sent in ((None, "Bearer glk_environment"), ("glk_given\n", "Bearer glk_given"), ("", None)):
            with Growthlaw(server.url, api_key=given) as client:
                client.health()
            assert server.seen[-1].headers.get("Authorization") == sent


# --- what comes back ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("schemas"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client.get("/openapi.json").json()["components"]["schemas"]


# The client's name -> the contract's, where they differ.
NAMES = {"Guideline": "GuidelineSummary"}
# Fields that the client leaves as items: they need fitted laws.
LEFT_AS_ITEMS = {"Recommendation"}
TYPES = [
    kind
    for kind in vars(answers).values()
    if isinstance(kind, type) and issubclass(kind, answers.Answer) and kind is not answers.Answer
]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_the_types_are_those_of_the_contract(schemas: dict[str, Any], kind: type[answers.Answer]) -> None:
    schema = schemas[NAMES.get(kind.__name__, kind.__name__)]["properties"]
    hints = {
        name: hint
        for name, hint in get_type_hints(kind, localns={"Growthlaw": Growthlaw}).items()
        if name not in ("_client", "parts")
    }
    missing = set(schema) - set(hints)
    assert set(hints) <= set(schema)
    assert not missing or kind.__name__ in LEFT_AS_ITEMS, missing
    assert not set(hints) & set(dir(dict)), "a field that a dict's method would hide"
    for name, hint in hints.items():
        may_be_null = "null" in [part.get("type") for part in schema[name].get("anyOf", [])]
        assert (type(None) in getattr(hint, "__args__", ())) == may_be_null, name
        words = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list"}
        kinds = {part.get("type") for part in schema[name].get("anyOf", [schema[name]])} & set(words)
        for word in kinds:
            assert words[word] in str(hint), (name, hint)


def test_an_answer_is_its_json_and_typed_attributes() -> None:
    job = {"id": "job_1", "state": "running", "progress": {"phase": "base"}, "later": 1}
    with by_script([Answer(200, json.dumps(job).encode())]) as server, Growthlaw(server.url) as client:
        found = client.job("job_1")
    assert json.loads(json.dumps(found)) == job == found
    assert found.progress is not None
    assert (found.state, found.progress.phase, found["later"]) == ("running", "base", 1)
    with pytest.raises(AttributeError, match="no 'wish'"):
        _ = found.wish
    with pytest.raises(AttributeError, match="not changed here"):
        found.state = "succeeded"


def test_iterating_over_a_page_goes_through_all_of_them() -> None:
    pages = [{"data": [{"id": f"job_{n}"} for n in part], "has_more": more, "next": str(part[-1])}
             for part, more in (([1, 2], True), ([3, 4], True), ([5], False))]  # fmt: skip
    script = [Answer(200, json.dumps(page).encode()) for page in pages]
    with by_script(script) as server, Growthlaw(server.url) as client:
        page = client.jobs(limit=2, state=None)
        assert [job.id for job in page.data] == [job["id"] for job in page["data"]] == ["job_1", "job_2"]
        assert (page.has_more, page.next) == (True, "2")
        assert len(server.seen) == 1, "pages are asked for as they are needed"
        assert [job.id for job in page] == [f"job_{n}" for n in range(1, 6)]
    assert [seen.path for seen in server.seen] == ["/jobs?limit=2", "/jobs?limit=2&after=2", "/jobs?limit=2&after=4"]


# --- a real service ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_stream_goes_on_over_a_killed_and_restarted_service(service: Any, grow_body: Body, until: Any) -> None:
    """kill -9 in mid-stream: every event once, in order, and `wait` holds out too."""
    service.options = ("--port", str(free_port()))
    client = service.start()
    job = client.grow(grow_body(controls=[])).arms[0].job
    seen: list[Any] = []
    ended: list[Any] = []
    follower = threading.Thread(target=follow, args=(job, seen))
    waiter = threading.Thread(target=lambda: ended.append(job.wait(timeout_seconds=600)))
    follower.start()
    waiter.start()
    until(lambda: [event for event in seen if event.event == "point"], "the first point")
    service.kill()
    service.start()
    follower.join(timeout=600)
    waiter.join(timeout=600)
    assert ended[0].state == "succeeded"
    assert [event.event for event in seen].count("end") == 1
    assert seen[-1].data["state"] == "succeeded"
    points = [event.data["seq"] for event in seen if event.event == "point"]
    assert points == [point.seq for point in client.run(job.run_id).points()]
    story = [event.id for event in seen if event.event == "story"]
    assert len(story) == len(set(story))
    check_taken_in_once(client, job, service.data_dir / "runs" / job.run_id)
    with pytest.raises(Refused, match="there is no job"):
        client.wait("job_none")


def follow(job: answers.Job, into: list[Any]) -> None:
    """Events as they come, so that others see how far it is."""
    for event in job.events():
        into.append(event)


def test_an_answer_that_is_lost_doubles_no_job(service: Any, grow_body: Body) -> None:
    """A proxy drops the answer to POST /grow once: the design was started, and is answered, once."""
    direct = service.start()
    dropped: list[str] = []

    def drops(request: Any) -> bool:
        if request.path == "/grow" and not dropped:
            dropped.append(request.headers["Idempotency-Key"])
            return True
        return False

    with dropping_proxy(direct.url, drops) as proxy, Growthlaw(proxy.url) as client:
        growth = client.grow(grow_body(controls=[], token_budget=400_000))
        assert [seen.headers["Idempotency-Key"] for seen in proxy.seen] == dropped * 2
    assert [job.id for job in direct.jobs()] == [growth.arms[0].job.id]
    assert len(list((service.data_dir / "runs").iterdir())) == 1
    assert [deed.action for deed in direct.audit()] == ["job.launch"]
    with pytest.raises(TimeoutError, match="has not ended within"):
        direct.wait(growth.arms[0].job.id, timeout_seconds=0.2)
    assert direct.job(growth.arms[0].job.id).cancel().wait().state == "cancelled"
