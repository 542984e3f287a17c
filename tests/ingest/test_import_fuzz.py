"""Whatever is sent to be imported: an answer that is no crash, and after a refusal the database as it was."""

from __future__ import annotations

import io
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.ingest.logs.recognise import FORMATS
from app.main import create_app
from app.settings import Settings

LOGS = Path(__file__).parent / "logs"
QUIET = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
TEXTS = {
    "transformers": "trainer_state.json", "megatron": "megatron.log", "lightning": "metrics.csv", "nanochat": "results.csv",
    "csv": "metrics.csv", "jsonl": "8-layers.wandb.jsonl", "wandb": "8-layers.wandb.jsonl",
}  # fmt: skip
ODD = (
    "nan",
    "NaN",
    "-inf",
    "Infinity",
    "1e999",
    "-1",
    "1e17",
    "0",
    "",
    "null",
    "true",
    "9" * 30,
    "0x10",
    "1_0",
    "½",
    "\x00",
    '"',
)
# Default and, with `-m long`, enough to walk into corners.
EXAMPLES = pytest.mark.parametrize(
    "max_examples", [12, pytest.param(2_000, marks=[pytest.mark.long, pytest.mark.timeout(3_600)])]
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    # Not entered: nothing is fitted in the background, as these runs are of no cohort that anybody asks.
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("service"), num_slots=1))
    yield TestClient(app, base_url="http://127.0.0.1")
    app.state.service.database.close()


def everything(client: TestClient) -> list[Any]:
    """All that imports write."""
    with client.app.state.service.database.read() as session:  # type: ignore[attr-defined]
        return [session.execute(text(f"SELECT * FROM {table} ORDER BY 1")).all() for table in ("cohorts", "runs")] + [
            session.execute(text("SELECT run_id, count(*), sum(seq) FROM points GROUP BY run_id ORDER BY 1")).all()
        ]


def send(client: TestClient, content: bytes, format_name: str | None, parts: tuple[str, ...], **options: Any) -> int:
    """Import, and hold what is stored against what was answered."""
    body = {
        "cohort": "fuzz", "name": "".join(random.choices(string.ascii_lowercase, k=20)), "format": format_name,
        "corpus": "c", "tokenizer": "t", "decision_metric": "train_loss", "decision_dataset": "",
        **({"base_params": 1e5} if parts != ("files",) else {}),
        **({"target_params": 4e5} if format_name != "nanochat" else {}), **options,
    }  # fmt: skip
    before = everything(client)
    files = [(part, ("log", content)) for part in parts]
    done = client.post("/runs/import", data={"options": json.dumps(body)}, files=files)
    assert done.status_code in (200, 409, 422), done.text
    after = everything(client)
    if done.status_code != 200:
        assert done.json()["detail"]
        assert after == before
    else:
        added = [run for run in done.json()["runs"] if run["outcome"] == "added"]
        assert len(after[1]) == len(before[1]) + len(added)
        assert len(after[2]) == len(before[2]) + len(added)
    return done.status_code


def damaged(data: Any, content: str) -> bytes:
    """A real log with lines shuffled, doubled and left out, and numbers in it that no trainer meant."""
    lines = content.splitlines(keepends=True)
    if len(lines) > 1:
        places = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=2 * len(lines)))
        lines = [lines[place] for place in (places if data.draw(st.booleans()) else sorted(places))]
        lines = ([content.splitlines(keepends=True)[0]] if data.draw(st.booleans()) else []) + lines
    mended = "".join(lines)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(mended)))
        digits = next((place for place in range(at, len(mended)) if mended[place].isdigit()), len(mended))
        end = digits
        while end < len(mended) and (mended[end].isdigit() or mended[end] in ".eE+-"):
            end += 1
        mended = mended[:digits] + data.draw(st.sampled_from(ODD)) + mended[end:]
    return mended.encode("utf-8", errors="replace")


@EXAMPLES
@pytest.mark.parametrize("format_name", TEXTS)
def test_damaged_logs_are_refused_whole_or_taken_whole(client: TestClient, format_name: str, max_examples: int) -> None:
    original = (LOGS / TEXTS[format_name]).read_text()

    @settings(QUIET, max_examples=max_examples)
    @given(data=st.data())
    def check(data: Any) -> None:
        parts = data.draw(st.sampled_from([("files",), ("base", "grown")]))
        tokens = data.draw(st.sampled_from([None, "step * 1024", "step", "loss", "1 / step", "10 ** 9", "step * 1e12"]))
        columns = [
            {"column": data.draw(st.sampled_from(["loss", "lm_loss", "train/loss", "nothing"])), "metric": "train_loss"}
        ]
        send(
            client, damaged(data, original), format_name, parts, tokens=tokens,
            columns=columns if data.draw(st.booleans()) else [],
            step=data.draw(st.sampled_from([None, None, "step", "iter", "_step"])),
            grown_counts=data.draw(st.sampled_from([None, "run", "phase"])),
        )  # fmt: skip

    check()


@EXAMPLES
@pytest.mark.parametrize("format_name", [*FORMATS, None])
def test_arbitrary_bytes_are_refused_and_change_nothing(
    client: TestClient, format_name: str | None, max_examples: int
) -> None:
    if format_name == "tensorboard":
        pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")

    @settings(QUIET, max_examples=max_examples)
    @given(content=st.binary(max_size=300))
    def check(content: bytes) -> None:
        send(client, content, format_name, ("files",), tokens="step * 1024")

    check()


@EXAMPLES
def test_damaged_event_files_are_refused_whole_or_taken_whole(client: TestClient, max_examples: int) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    original = (LOGS / "events.out.tfevents.1").read_bytes()

    @settings(QUIET, max_examples=max_examples)
    @given(at=st.integers(0, len(original)), gone=st.integers(0, 100), new=st.binary(max_size=30))
    def check(at: int, gone: int, new: bytes) -> None:
        send(client, original[:at] + new + original[at + gone :], "tensorboard", ("files",))

    check()


@EXAMPLES
def test_tables_of_any_numbers_are_refused_whole_or_taken_whole(client: TestClient, max_examples: int) -> None:
    numbers = st.one_of(st.integers(-3, 40), st.floats(allow_nan=True, width=64), st.none())

    @settings(QUIET, max_examples=max_examples)
    @given(rows=st.lists(st.tuples(numbers, numbers, numbers), max_size=20), parquet=st.booleans())
    def check(rows: list[tuple[Any, Any, Any]], parquet: bool) -> None:
        columns = [{"column": "loss", "metric": "train_loss"}]
        if parquet:
            buffer = io.BytesIO()
            floats = [[None if cell is None else float(cell) for cell in row] for row in rows]
            names = ("step", "loss", "tok")
            pq.write_table(pa.table({name: [row[place] for row in floats] for place, name in enumerate(names)}), buffer)
            content = buffer.getvalue()
        else:
            cells = ("" if cell is None else str(cell) for row in rows for cell in row)
            content = (
                "step,loss,tok\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*[cells] * 3, strict=True))
            ).encode()
        send(client, content, None, ("files",), columns=columns, tokens="tok" if len(rows) % 2 else "step * 4096")

    check()


def test_several_runs_are_stored_together_or_not_at_all(client: TestClient) -> None:
    log = "step,loss\n" + "".join(f"{step},{5 - step / 50}\n" for step in range(10, 101, 10))
    files = [("files", (f"{place}.csv", log.replace("4.8", f"4.8{place}"))) for place in range(3)]

    def several(*names: str, **more: Any) -> Any:
        runs = [
            {"cohort": "several", "name": name, "target_params": 4e5, "corpus": "c", "tokenizer": "t", "tokens": "step * 1024",
             "columns": [{"column": "loss", "metric": "train_loss"}], "decision_metric": "train_loss", "decision_dataset": "",
             "files": [f"{place}.csv"]}
            for place, name in enumerate(names)
        ]  # fmt: skip
        return client.post("/runs/import", data={"options": json.dumps({"runs": runs, **more})}, files=files)

    assert several("a", "b").json()["cohorts"][0]["num_runs_added"] == 2
    before = everything(client)
    # The third run is new; the first has another's name.
    taken = several("b", "x", "new")
    assert taken.status_code == 200  # known by their content, whatever they are called
    assert taken.json()["cohorts"][0]["num_runs_added"] == 1
    files = [("files", (f"{place}.csv", log.replace("4.8", f"4.7{place}"))) for place in range(3)]
    before = everything(client)
    refused = several("fresh-1", "fresh-2", "a")
    assert refused.status_code == 422
    assert "'a' is run_" in refused.json()["detail"]
    assert everything(client) == before
    for names, words in ((("p", "p"), "comes twice"), (("p", "q", "r", "s"), "is no file that was sent")):
        assert words in several(*names).json()["detail"]
    assert everything(client) == before
