"""`growthlaw runs import` on files and folders as trainers leave them, against a real service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.client import Growthlaw, Refused
from app.commands import import_sources
from app.commands.runs import runs as runs_command
from fitting.errors import InputError


def run_import(client: Growthlaw, *arguments: str | Path) -> Any:
    return CliRunner().invoke(runs_command, ["import", *map(str, arguments), "--url", client.url])


def answer(done: Any) -> Any:
    """The JSON line; the service in this process logs beside it."""
    (line,) = [line for line in done.output.splitlines() if line.startswith("{")]
    return json.loads(line)


def stored(client: Growthlaw, cohort: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.runs(cohort=cohort)["data"]
    return found


def test_transformers_folders_join_into_a_growth(live_client: Growthlaw, logs: Path, tmp_path: Path) -> None:
    config = json.loads((logs / "config.json").read_text())
    (tmp_path / "target.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    for stage in ("base", "grown"):
        # As the Trainer leaves them: the newest checkpoint holds the whole history.
        for step, text in (("4", "{}"), ("12", (logs / "trainer_state.json").read_text())):
            (tmp_path / stage / f"checkpoint-{step}").mkdir(parents=True)
            (tmp_path / stage / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    arguments = (
        "--base", tmp_path / "base", "--grown", tmp_path / "grown", "--cohort", "hf", "--config", tmp_path / "target.json",
        "--base-config", logs / "config.json", "--decision", "web", "--corpus", "noise", "--tokenizer", "ids",
        "--set", "optimizer=adamw", "--save-mapping", tmp_path / "project.json",
    )  # fmt: skip
    dry = run_import(live_client, *arguments, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "Nothing was stored" in dry.output
    assert stored(live_client, "hf") == []
    done = run_import(live_client, *arguments)
    assert done.exit_code == 0, done.output
    (run,) = stored(live_client, "hf")
    assert (run["name"], run["growth_factor"], run["optimizer"]) == ("grown", 4.0, "adamw")
    assert (run["growth_timing_tokens"], run["grown_tokens"]) == (1536, 1536)
    assert {p["dataset"] for p in live_client.points(run["run_id"], "validation_loss")} == {"web", "code"}
    # The project's mapping says all of it again for its next run.
    again = run_import(
        live_client, "--base", tmp_path / "base", "--grown", tmp_path / "grown", "--mapping", tmp_path / "project.json"
    )
    assert again.exit_code == 0, again.output
    assert "known" in again.output
    assert len(stored(live_client, "hf")) == 1


def test_megatron_and_torchtitan_logs_come_in_with_what_was_wasted(
    live_client: Growthlaw, logs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    common = ("--config", logs / "config.json", "--corpus", "web", "--tokenizer", "bpe", "--json")
    done = run_import(
        live_client, logs / "megatron.log", "--cohort", "megatron", "--tokens", "consumed_samples * 2048",
        "--decision", "validation", *common,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (run,) = answer(done)["runs"]
    assert (run["name"], run["grown_tokens"], run["final_loss"]) == ("megatron", 120 * 8 * 2048, pytest.approx(3.61))
    assert run["wasted_flops"] == pytest.approx(run["compute_flops"] * 20 / 120)
    # torchtitan makes a folder a start.
    for place in (1, 2):
        folder = tmp_path / "tb" / f"20260501-10{place}0"
        folder.mkdir(parents=True)
        shutil.copy(logs / f"events.out.tfevents.{place}", folder / f"events.out.tfevents.{place}.node.0")
    done = run_import(live_client, tmp_path / "tb", "--cohort", "titan", "--name", "t", *common)
    assert done.exit_code == 0, done.output
    (run,) = answer(done)["runs"]
    assert (run["grown_tokens"], run["final_loss"]) == (12 * 4096, pytest.approx(2.85, abs=1e-6))
    assert run["wasted_flops"] == pytest.approx(run["compute_flops"] * 3 / 12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a SOURCE"),
        (("LOGS/metrics.csv",), "--cohort is missing"),
        (("LOGS/metrics.csv", "--bundled"), "goes without a SOURCE"),
        (("LOGS/metrics.csv", "--cohort", "c", "--map", "loss"), "is not METRIC[:SET]=COLUMN"),
        (("LOGS/metrics.csv", "--cohort", "c", "--batch-ramp", "1"), "is not STEP:TOKENS"),
        (("LOGS/metrics.csv", "--cohort", "c", "--bytes-per-token", "x"), "is not [SET=]BYTES"),
        (("LOGS/metrics.csv", "--cohort", "c", "--set", "x"), "is not NAME=VALUE"),
        (("LOGS/metrics.csv", "--cohort", "c", "--config", "LOGS/megatron.log"), "is not JSON"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_sent(logs: Path, arguments: tuple[str, ...], words: str) -> None:
    given = [argument.replace("LOGS", str(logs)) for argument in arguments]
    failed = CliRunner().invoke(runs_command, ["import", *given, "--url", "http://127.0.0.1:9"])
    assert failed.exit_code != 0
    assert words in failed.output + str(failed.exception)


def test_maps_ramps_and_names_are_read_as_written(tmp_path: Path) -> None:
    given = dict.fromkeys(("plan", "config", "base_config"), None) | {
        "maps": ("validation_loss:web=eval/web:loss", "validation_loss=bpb:bits_per_byte"), "batch_ramp": "1:1e6,100:2097152",
        "bytes_per_token": ("4.25", "web=4.5"), "stated": ("init_seed=7", "schedule=wsd"), "recipe": (), "not_final": True,
        "replace": False, "restore": False,
    }  # fmt: skip
    assert import_sources.options_of(given, (), {}) == {
        "columns": [
            {"metric": "validation_loss", "dataset": "web", "column": "eval/web:loss"},
            {"metric": "validation_loss", "dataset": "", "column": "bpb", "unit": "bits per byte"},
        ],
        "batch_ramp": [[1, 1_000_000], [100, 2_097_152]],
        "bytes_per_token": {"validation": 4.25, "web": 4.5},
        "stated": {"init_seed": 7, "schedule": "wsd"},
        "is_final": False,
    }
    (tmp_path / "run-7").mkdir()
    (tmp_path / "run-7" / "metrics.csv").write_text("step\n")
    assert import_sources.name_of(tmp_path / "run-7" / "metrics.csv") == "run-7"
    assert import_sources.name_of(tmp_path / "run-7") == "run-7"
    assert [name for name, _ in import_sources.files_of(tmp_path / "run-7")] == ["metrics.csv"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no TensorBoard events"):
        import_sources.files_of(tmp_path / "empty")


def test_a_mapping_is_saved_for_the_team_or_read_from_a_file(
    live_client: Growthlaw, logs: Path, tmp_path: Path
) -> None:
    said = ("--cohort", "team", "--config", logs / "config.json", "--corpus", "web", "--tokenizer", "bpe")
    dry = run_import(live_client, logs / "metrics.csv", *said, "--save-mapping", "our-project", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert live_client.mappings() == []
    done = run_import(live_client, logs / "metrics.csv", *said, "--save-mapping", "our-project", "--name", "first")
    assert done.exit_code == 0, done.output
    saved = live_client.mapping("our-project")["options"]
    assert (saved["cohort"], saved["corpus"], "name" in saved) == ("team", "web", False)
    # A colleague says its name and what differs.
    again = run_import(live_client, logs / "metrics.csv", "--mapping", "our-project", "--cohort", "team2", "--json")
    assert answer(again)["cohorts"][0]["cohort"] == "team2"
    (tmp_path / "m.toml").write_text(
        'cohort = "team3"\ntarget_params = 4e5\ncorpus = "web"\ntokenizer = "bpe"\ntokens = "step * 1024"\n'
    )
    from_file = answer(run_import(live_client, logs / "metrics.csv", "--mapping", tmp_path / "m.toml", "--json"))
    assert from_file["runs"][0]["grown_tokens"] == 7 * 1024
    for name, words in (("nobody's", "is not in the service"), (tmp_path / "none.toml", "cannot be read")):
        failed = run_import(live_client, logs / "metrics.csv", "--mapping", name)
        assert words in str(failed.exception)
    (tmp_path / "m.toml").write_text('cohort = "team3"\ntokns = "step"\n')
    failed = run_import(live_client, logs / "metrics.csv", "--mapping", tmp_path / "m.toml")
    assert "tokns: this field is not known" in str(failed.exception)


def test_saved_mappings_are_listed_and_removed(live_client: Growthlaw) -> None:
    live_client.save_mapping("listed", {"tokens": "step * 8", "wandb": {"filters": {"state": "finished"}}})
    shown = CliRunner().invoke(runs_command, ["mappings", "listed", "--url", live_client.url])
    assert answer(shown) == {"tokens": "step * 8", "wandb": {"filters": {"state": "finished"}}}
    assert "listed" in CliRunner().invoke(runs_command, ["mappings", "--url", live_client.url]).output
    gone = CliRunner().invoke(runs_command, ["mappings", "listed", "--delete", "--url", live_client.url])
    assert gone.exit_code == 0
    assert "listed" not in [mapping["name"] for mapping in live_client.mappings()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "one"}, "name"),
        ({"replace": True}, "replace"),
        ({"token": "step"}, "this field is not known"),
        ({"wandb": {"join": "config"}}, "join"),
        ({"batch_ramp": [[1]]}, "batch_ramp"),
    ],
)
def test_a_mapping_that_no_import_would_take_is_refused(live_client: Growthlaw, options: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        live_client.save_mapping("bad", options)
    with pytest.raises(Refused, match="there is no mapping"):
        live_client.mapping("bad")
