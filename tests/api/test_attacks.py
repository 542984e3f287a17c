"""What a hostile request or a tampered row asks for is refused or does nothing: no path leaves the data directory, no
text reaches a shell."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import Refused

Body = Callable[..., dict[str, Any]]

TEXTS = [
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "a|touch pwned",
    "a&touch pwned",
    "a\ntouch pwned",
    "a\x00b",
    "a b",
    "-rf",
    "--help",
    "../../etc/passwd",
    "..",
    "/etc/passwd",
    "a/b",
    "%2e%2e%2f",
    "Robert'); DROP TABLE jobs;--",
    "{{7*7}}",
    "${HOME}",
    "a" * 65,
    "",
    "\N{GRINNING FACE}",
    "half a pair: \ud800",
]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory, new_service: Any) -> Iterator[Any]:
    """A service to which nothing here should ever give work."""
    service = new_service(tmp_path_factory.mktemp("attacked") / "data")
    service.start()
    yield service
    assert service.client.jobs()["data"] == []
    assert list((service.data_dir / "runs").iterdir()) == []
    assert not list(service.data_dir.parent.rglob("pwned"))
    service.stop()


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_texts_with_a_meaning_to_shells_paths_or_databases_are_refused(
    refusing: Any, grow_body: Body, text: str
) -> None:
    train = {
        "name": "n", "cohort": "tiny", "corpus": "tiny", "model": grow_body()["target_model"],
        "training": {"tokens": 2_048, "peak_lr": 4e-3, "batch_sequences": 8},
    }  # fmt: skip
    for path, body, fields in (
        ("/grow", grow_body(controls=[]), ("name", "cohort", "corpus", "engine", "device", "order", "operator")),
        ("/jobs", train, ("name", "cohort", "corpus", "engine", "device", "precision")),
        ("/corpora", {"name": "n"}, ("name",)),
    ):
        for field in fields:
            # As ASCII, so that half a surrogate pair goes over the wire as JSON allows it.
            content = json.dumps(body | {field: text})
            answer = httpx.post(
                refusing.client.url + path, content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 422, (path, field, answer.text)
            assert answer.json()["errors"][0]["pointer"] == f"/{field}", answer.text
            assert len(answer.text) < 2_000, "an error does not repeat a long value"


@pytest.mark.parametrize("text", [text for text in TEXTS if text and "\ud800" not in text], ids=ascii)
def test_ids_with_such_texts_name_nothing(refusing: Any, text: str) -> None:
    client = refusing.client
    for ask in (client.job, client.cancel, client.retry, client.logs, client.checkpoints, client.run, client.points):
        with pytest.raises(Refused) as caught:
            ask(text)
        assert caught.value.status == 404
    assert client.jobs(group_id=text[:64])["data"] == []


def test_a_job_whose_directory_was_moved_out_of_the_root_is_refused(
    service: Any, grow_body: Body, until: Any, tmp_path: Path
) -> None:
    """While they waited, one job's directory became a link and the others' rows were changed: none of them runs."""
    service.options = ("--slots", "1")
    client = service.start()
    busy = client.grow(grow_body(controls=[], token_budget=4_000_000))["arms"][0]["job"]
    until(lambda: client.job(busy["id"])["state"] == "running", "the only slot is taken")
    jobs = [client.grow(grow_body(controls=[], name=f"n{place}"))["arms"][0]["job"] for place in range(4)]
    runs = service.data_dir.resolve() / "runs"
    outside = tmp_path / "outside"
    shutil.copytree(runs / jobs[0]["run_id"], outside)
    shutil.rmtree(runs / jobs[0]["run_id"])
    (runs / jobs[0]["run_id"]).symlink_to(outside)
    (runs / "$(touch pwned)").mkdir()
    with contextlib.closing(sqlite3.connect(service.data_dir / "growthlaw.sqlite3")) as database, database:
        for job, run_dir in zip(jobs[1:], (outside, f"{runs}/../../outside", runs / "$(touch pwned)"), strict=True):
            database.execute("UPDATE jobs SET run_dir = ? WHERE id = ?", (str(run_dir), job["id"]))
    before = sorted(outside.iterdir())
    client.cancel(busy["id"])
    for job in jobs:
        until(lambda job=job: client.job(job["id"])["state"] == "failed", "it is refused")
        refused = client.job(job["id"])
        assert refused["cause"] == "bad_spec"
        assert "run_dir" in refused["reason"]
    assert sorted(outside.iterdir()) == before
    assert not list(tmp_path.rglob("pwned"))
    assert service.engine_processes() == []
