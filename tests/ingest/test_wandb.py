"""`growthlaw runs import wandb:...`: a recorded W&B project over real HTTP into a real service."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wandb_server import KEY, RecordedRun, WandbServer, wandb_server

from app.client import Growthlaw
from app.commands.runs import runs as runs_command
from app.commands.wandb_sources import filters_of, place_of
from app.ingest.logs.recognise import read_logs
from app.ingest.logs.rows import LogFile
from app.wandb_api import WandbApi
from fitting.errors import InputError

MODEL = {
    "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 128,
}  # fmt: skip
CONFIG = {"batch": 8, "data": {"seq_len": 128}, "optimizer": {"lr": 0.004}, "model": MODEL}
TOKENS = "step * config_batch * config_data_seq_len"
COMMON = (
    "--corpus", "web", "--tokenizer", "bpe", "--tokens", TOKENS, "--from-config", "config=model",
    "--from-config", "peak_lr=optimizer.lr", "--map", "train_loss=loss", "--map", "validation_loss:web=val/web",
)  # fmt: skip


def history(num_steps: int = 100, *, first: int = 0, shift: float = 0.0, every: int = 10) -> list[dict[str, Any]]:
    return [
        {"_step": step, "_timestamp": 1.75e9 + step, "_runtime": step, "loss": 5 - step / 100 + shift}
        | ({"val/web": 5.1 - step / 100 + shift} if step % every == 0 else {})
        for step in range(first, num_steps + 1)
    ]


def recorded(run_id: str, name: str | None = None, rows: Any = None, **more: Any) -> RecordedRun:
    return RecordedRun(run_id, name or run_id, history() if rows is None else rows, more.pop("config", CONFIG), **more)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return KEY


@pytest.fixture
def server(key: str) -> Iterator[WandbServer]:
    with wandb_server(proj=[]) as running:
        yield running


def run_import(client: Growthlaw, server: WandbServer, *arguments: Any) -> Any:
    given = ["import", *map(str, arguments), "--url", client.url, "--wandb-url", server.url]
    done = CliRunner().invoke(runs_command, given)
    assert KEY not in done.output + str(done.exception)
    return done


def answer(done: Any) -> Any:
    assert done.exit_code == 0, done.output + str(done.exception)
    (line,) = [line for line in done.output.splitlines() if line.startswith("{")]
    return json.loads(line)


def stored(client: Growthlaw, cohort: str) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in client.runs(cohort=cohort, limit=1000)["data"]}


def test_a_project_comes_in_whole_with_how_each_run_ended(live_client: Growthlaw, server: WandbServer) -> None:
    server.projects["team/proj"] = [
        recorded("aa", "scratch"),
        recorded("bb", "diverged", [*history(60), {"_step": 61, "loss": "NaN"}], state="crashed"),
        recorded("cc", "crashed", history(50, shift=0.1), state="crashed"),
        recorded("dd", "goes-on", history(50, shift=0.2), state="running"),
    ]
    given = ("wandb:team/proj", "--cohort", "whole", *COMMON)
    dry = run_import(live_client, server, *given, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "1 runs still go on and are left out" in dry.output
    assert "Nothing was stored" in dry.output
    assert stored(live_client, "whole") == {}
    done = answer(run_import(live_client, server, *given, "--json"))
    assert done["cohorts"][0]["num_runs_added"] == 3
    found = stored(live_client, "whole")
    assert {name: found[name]["status"] for name in ("scratch", "diverged", "crashed")} == {
        "scratch": "finished", "diverged": "diverged", "crashed": "stopped",
    }  # fmt: skip
    assert found["crashed"]["reason"] == "W&B says that it crashed"
    scratch = found["scratch"]
    assert (scratch["grown_tokens"], scratch["peak_lr"]) == (100 * 8 * 128, 0.004)
    assert scratch["final_loss"] == pytest.approx(4.1)
    points = live_client.points(scratch["run_id"])
    assert len(points) == 101 + 11
    assert points[0]["time"].startswith("2025-06-15T15:06:40")
    again = answer(run_import(live_client, server, *given, "--json"))
    assert (again["cohorts"][0]["num_runs_added"], again["cohorts"][0]["num_runs_known"]) == (0, 3)
    only = answer(
        run_import(
            live_client, server, *given, "--cohort", "some", "--run", "crash*", "--run", "aa", "--dry-run", "--json"
        )
    )
    assert [run["name"] for run in only["runs"]] == ["scratch", "crashed"]
    crashed = answer(run_import(live_client, server, *given, "--filter", "state=crashed", "--dry-run", "--json"))
    assert [run["name"] for run in crashed["runs"]] == ["diverged", "crashed"]


def test_the_history_is_the_full_one(key: str) -> None:
    rows = history(25_000, first=3_000)
    with wandb_server(proj=[recorded("long", rows=rows)]) as server, WandbApi(server.url) as api:
        (run,) = api.runs("team", "proj")
        found = list(api.history(run))
        assert found == json.loads(json.dumps(rows))
        # Pages widen: 1, 2, 4, 8, 10 thousand steps, and one step more.
        assert server.asked.count("HistoryPage") == 6


def test_projects_come_page_by_page(server: WandbServer) -> None:
    server.projects["team/proj"] = [recorded(f"x{place}", rows=history(3)) for place in range(120)]
    with WandbApi(server.url) as api:
        assert len({run.id for run in api.runs("team", "proj")}) == 120
    assert server.asked == ["Runs"] * 3


def test_a_busy_server_is_waited_for_as_it_asks(server: WandbServer) -> None:
    waited: list[float] = []
    server.projects["team/proj"] = [recorded("aa")]
    server.refusals = [
        (429, {"Retry-After": "7"}),
        (429, {"RateLimit-Reset": "3"}),
        (503, {}),
        (429, {"Retry-After": "nan"}),
    ]
    with WandbApi(server.url, wait=waited.append) as api:
        assert api.run("team", "proj", "aa").name == "aa"
        assert waited == [7.0, 3.0, 4.0, 8.0]
        server.refusals = [(429, {})] * 8
        with pytest.raises(InputError, match=r"refuses more requests for now \(HTTP 429\), 8 times; try again later"):
            api.run("team", "proj", "aa")


def test_a_page_that_is_too_much_is_asked_for_in_parts(server: WandbServer) -> None:
    server.projects["team/proj"] = [recorded("aa", rows=history(900))]
    with WandbApi(server.url, wait=lambda _: None) as api:
        run = api.run("team", "proj", "aa")
        server.refusals = [(504, {}), (504, {})]
        assert len(list(api.history(run))) == 901


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("wandb:team", "names no W&B project"),
        ("wandb:team/other", "has no project team/other that this key may read"),
        ("wandb:team/proj", "has no run in team/proj that is asked for"),
        ("wandb:team/proj/zz", "has no run team/proj/zz"),
    ],
)
def test_what_is_not_there_is_said_by_name(
    live_client: Growthlaw, server: WandbServer, source: str, words: str
) -> None:
    done = run_import(live_client, server, source, "--cohort", "none", *COMMON[:6])
    assert done.exit_code != 0
    assert words in str(done.exception)


def test_a_wrong_or_missing_key_is_said_and_never_shown(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-that-is-wrong")
    with WandbApi(server.url) as api, pytest.raises(InputError, match="is refused by") as refused:
        api.run("team", "proj", "aa")
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(InputError, match=r"WANDB_API_KEY is not set.*set it, or run `wandb login`"):
        WandbApi(server.url)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    server.projects["team/proj"] = [recorded("aa")]
    with WandbApi(server.url) as api:
        assert api.run("team", "proj", "aa").config["batch"] == 8
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 password {KEY} nonsense")
    with pytest.raises(InputError, match="cannot be read") as unread:
        WandbApi(server.url)
    assert KEY not in str(unread.value)
    for url in ("ftp://x", "http://user:secret@x", "nonsense"):
        with pytest.raises(InputError, match="wandb_url is no http") as wrong:
            WandbApi(url)
        assert "secret" not in str(wrong.value)


def test_runs_started_again_are_one_run_when_told(live_client: Growthlaw, server: WandbServer) -> None:
    # Crashed behind step 60; a new W&B run goes on from the checkpoint at 40.
    server.projects["team/proj"] = [
        recorded("r1", "big", history(60, shift=0.5), state="crashed", created_at="2026-05-01T10:00:00Z"),
        recorded("r2", "big", history(100, first=41), created_at="2026-05-01T12:00:00Z"),
    ]
    given = ("wandb:team/proj", "--cohort", "again", *COMMON)
    refused = run_import(live_client, server, *given)
    assert "'big' is that of team/proj/r1 and of team/proj/r2; say --join name" in str(refused.exception)
    (run,) = answer(run_import(live_client, server, *given, "--join", "name", "--json"))["runs"]
    assert (run["status"], run["grown_tokens"], run["num_points"]) == ("finished", 100 * 1024, 101 + 11)
    assert run["wasted_flops"] == pytest.approx(run["compute_flops"] * 20 / 100)
    losses = {p["tokens"]: p["value"] for p in live_client.points(run["run_id"], "train_loss")}
    assert (losses[40 * 1024], losses[50 * 1024]) == (pytest.approx(5.1), pytest.approx(4.5))
    # Named one by one they are one log as well, in the order they are named.
    same = answer(
        run_import(live_client, server, "wandb:team/proj/r1", "wandb:team/proj/runs/r2", "--cohort", "again", *COMMON[:6],
                   *COMMON[10:], "--config", _config_file(server), "--set", "peak_lr=0.004", "--json")
    )  # fmt: skip
    assert same["runs"][0]["outcome"] == "known"


def _config_file(server: WandbServer) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "config.json"
    path.write_text(json.dumps(MODEL))
    return path


def test_transformers_runs_need_no_map_and_rewind_by_the_trainers_own_step(
    live_client: Growthlaw, server: WandbServer
) -> None:
    """The same W&B run resumed: `_step` goes on, `train/global_step` comes back; W&B keeps NaN as text."""
    steps = [*range(10, 70, 10), *range(50, 110, 10)]
    rows: list[dict[str, Any]] = []
    for place, step in enumerate(steps):
        row = {"train/loss": 5 - step / 100 + (0.3 if place < 6 and step >= 50 else 0.0), "train/global_step": step}
        rows.append({"_step": len(rows), **row, "train/num_input_tokens_seen": step * 1024, "train/epoch": 0.1})
        if step % 50 == 0:
            rows.append({"_step": len(rows), "eval/web_loss": 5.1 - step / 100, "eval/code_loss": 4.1,
                         "train/num_input_tokens_seen": step * 1024, "train/global_step": step})  # fmt: skip
    server.projects["team/proj"] = [recorded("hf", rows=rows, config=MODEL | {"max_steps": 100})]
    (run,) = answer(
        run_import(live_client, server, "wandb:team/proj", "--cohort", "hf-wandb", "--corpus", "web", "--tokenizer", "bpe",
                   "--from-config", "config=.", "--decision", "web", "--json")
    )["runs"]  # fmt: skip
    assert (run["status"], run["grown_tokens"], run["datasets"]) == ("finished", 100 * 1024, ["code", "web"])
    assert run["wasted_flops"] == pytest.approx(run["compute_flops"] * 20 / 100)
    losses = {p["tokens"]: p["value"] for p in live_client.points(run["run_id"], "train_loss")}
    assert losses[50 * 1024] == pytest.approx(4.5)


def test_a_base_and_what_was_grown_from_it_are_one_growth(live_client: Growthlaw, server: WandbServer) -> None:
    grown = CONFIG | {"growth": {"from": "base-1"}, "base_layers": 2}
    small = CONFIG | {"model": MODEL | {"num_hidden_layers": 2}}
    server.projects["team/proj"] = [
        recorded("b1", "base-1", history(40, shift=0.5), config=small),
        recorded("g1", "grown-1", history(60, shift=-0.5), config=grown),
        recorded("s1", "scratch-1"),
    ]
    given = (
        "--cohort",
        "growths",
        *COMMON,
        "--from-config",
        "base=growth.from",
        "--from-config",
        "base_layers=base_layers",
    )
    done = answer(run_import(live_client, server, "wandb:team/proj", *given, "--run", "g1", "--run", "s1", "--json"))
    runs = {run["name"]: run for run in done["runs"]}
    assert set(runs) == {"grown-1", "scratch-1"}
    grown_run = runs["grown-1"]
    assert (grown_run["growth_factor"], grown_run["growth_timing_tokens"], grown_run["grown_tokens"]) == (
        4.0, 40 * 1024, 60 * 1024,
    )  # fmt: skip
    assert {p["phase"] for p in live_client.points(grown_run["run_id"])} == {"base", "grown"}
    # The same two, named by themselves.
    same = answer(
        run_import(live_client, server, "--base", "wandb:team/proj/b1", "--grown", "wandb:team/proj/g1", "--cohort", "growths",
                   *COMMON[:6], *COMMON[10:], "--config", _config_file(server), "--base-layers", 2, "--set", "peak_lr=0.004",
                   "--json")
    )  # fmt: skip
    assert same["runs"][0]["outcome"] == "known"


def test_one_bad_run_stops_all_unless_it_is_left_out(
    live_client: Growthlaw, server: WandbServer, tmp_path: Path
) -> None:
    server.projects["team/proj"] = [
        recorded("aa", "good"),
        recorded("bb", "empty", [], state="crashed"),
        recorded("cc", "unmapped", [{"_step": 1, "other": 2.0}], state="failed"),
    ]
    given = ("wandb:team/proj", "--cohort", "bad", *COMMON)
    refused = run_import(live_client, server, *given)
    told = str(refused.exception)
    assert "2 of 3 logs make no run, so none was stored" in told
    assert "empty: " in told
    assert "unmapped: map names the column 'loss', which the log does not have; it has other" in told
    assert stored(live_client, "bad") == {}
    done = answer(run_import(live_client, server, *given, "--skip-bad", "--save-logs", tmp_path, "--json"))
    assert [run["name"] for run in done["runs"]] == ["good"]
    assert [run["name"] for run in done["left_out"]] == ["empty", "unmapped"]
    # What was fetched is kept, and is a source itself.
    kept = tmp_path / "team-proj-aa.wandb.jsonl"
    assert KEY not in kept.read_text()
    (log,) = read_logs([LogFile(name=kept.name, content=kept.read_bytes())])
    assert (log.format, len(log.rows), log.constants["config_optimizer_lr"]) == ("wandb", 101, 0.004)


def test_wide_histories_are_sent_with_what_means_something(
    live_client: Growthlaw, server: WandbServer, tmp_path: Path
) -> None:
    wide = [
        row | {f"layer/{place}/norm": 1.0 for place in range(100)} | {"tokens seen": row["_step"] * 10}
        for row in history(20)
    ]
    server.projects["team/proj"] = [recorded("aa", rows=wide)]
    given = list(COMMON)
    given[given.index(TOKENS)] = "tokens_seen * 200"
    done = answer(
        run_import(
            live_client, server, "wandb:team/proj", "--cohort", "wide", *given, "--save-logs", tmp_path, "--json"
        )
    )
    assert done["runs"][0]["grown_tokens"] == 40_000
    (path,) = tmp_path.iterdir()
    assert set(json.loads(path.read_text().splitlines()[1])) == {
        "_step",
        "_timestamp",
        "loss",
        "val/web",
        "tokens seen",
    }


def test_tokens_are_never_guessed(live_client: Growthlaw, server: WandbServer) -> None:
    server.projects["team/proj"] = [recorded("aa")]
    done = run_import(live_client, server, "wandb:team/proj", "--cohort", "guess", *COMMON[:4], *COMMON[6:])
    assert "tokens are not in this wandb log, and they are never guessed" in str(done.exception)
    wrong = run_import(live_client, server, "wandb:team/proj", "--cohort", "guess", *COMMON[:4], "--tokens", "step * config_b",
                       *COMMON[6:])  # fmt: skip
    assert "names 'config_b', which the log does not have; use step or one of: loss, val_web, config_batch" in str(
        wrong.exception
    )


def test_sources_and_filters_are_read_as_written() -> None:
    assert place_of("wandb:team/proj/runs/abc") == ("team", "proj", "abc")
    assert place_of("wandb:team/proj/") == ("team", "proj", None)
    assert filters_of(["state=finished", "config.lr=0.001", '{"$or": [{"tags": "a"}]}']) == {
        "$and": [{"state": "finished"}, {"config.lr.value": 0.001}, {"$or": [{"tags": "a"}]}]
    }
    assert filters_of(["group=a"]) == {"group": "a"}
    assert filters_of([]) == {}
    for bad in ("x", "{"):
        with pytest.raises(InputError, match="filter"):
            filters_of([bad])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("wandb:team/proj", "wandb:team/proj/aa"), "is a whole project"),
        (("wandb:team/proj/aa", "--join", "name"), "--join goes with wandb:ENTITY/PROJECT alone"),
        (("wandb:team/proj", "--from-config", "x"), "is none; write FIELD=KEY"),
        (("wandb:team/proj", "--from-config", "tokens=a"), "from_config names 'tokens'"),
    ],
)
def test_wrong_arguments_are_said(live_client: Growthlaw, server: WandbServer, arguments: Any, words: str) -> None:
    done = run_import(live_client, server, *arguments, "--cohort", "args")
    assert done.exit_code != 0
    assert words in done.output + str(done.exception)


def test_runs_that_never_left_their_machine_are_refused_by_name(live_client: Growthlaw, tmp_path: Path) -> None:
    folder = tmp_path / "wandb" / "offline-run-20260501_101112-abcd"
    folder.mkdir(parents=True)
    (folder / "run-abcd.wandb").write_bytes(b":W&B\xe1\xbe\x00" + b"\x00" * 20)
    for source in (folder, folder / "run-abcd.wandb"):
        done = CliRunner().invoke(runs_command, ["import", str(source), "--cohort", "c", "--url", live_client.url])
        assert "wandb sync" in str(done.exception)


def test_nan_as_w_and_b_writes_it_is_a_number_that_is_none() -> None:
    lines = [
        {"wandb_run": {"state": "finished"}},
        {"_step": 1, "train/loss": 3.0},
        {"_step": 2, "train/loss": "Infinity"},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    (log,) = read_logs([LogFile(name="x", content=content)])
    assert math.isinf(log.rows[1].values["train/loss"])
