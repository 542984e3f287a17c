"""`growthlaw evaluate` as people run it: on a run, on grown checkpoints, on text, on two at once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli import cli
from app.contract import CorpusSpec
from app.corpus.prepare import prepare_corpus


def growthlaw(*arguments: str | Path) -> Any:
    """JSON of a run that worked."""
    found = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_run_gives_the_loss_it_ended_with_and_tells_its_copies(
    tmp_path: Path, tiny_corpus: Path, write_run: Callable[..., Path], run_engine: Callable[..., Any]
) -> None:
    """The trainer's own last validation loss, out of another process and another path through the code."""
    run = write_run(
        tmp_path / "run", corpus_dir=str(tiny_corpus), growth__growth_timing_tokens=2_560, training__tokens=5_120
    )
    done = run_engine(run)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["value"] for line in lines if line["metric"] == "validation_loss"][-1]
    report = growthlaw("evaluate", run, "--corpus", tiny_corpus, "--windows", "8", "--drop-layers", "--copying")
    (checkpoint,) = report["checkpoints"]
    copied = {name: one["value"] for name, one in checkpoint["copying"].items()}
    assert copied["gain_nats"] == pytest.approx(copied["first_nats"] - copied["second_nats"])
    assert abs(copied["gain_nats"]) < 0.3  # 5,120 tokens teach no model to copy
    assert report["context_length"] == 32
    assert checkpoint["losses"][0]["loss_nats"]["value"] == pytest.approx(trained, abs=2e-6)
    drops = checkpoint["dropped_layers"]
    assert [(drop["source_layer"], drop["copy"]) for drop in drops] == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_a_grown_checkpoint_tells_its_copies(checkpoint: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    """The zero operator adds identities: the grown model's loss is the base's, and each new layer is worth nothing."""
    grown = tmp_path / "grown"
    made = CliRunner().invoke(
        cli, ["checkpoint", "grow", str(checkpoint), str(grown), "--factor", "2", "--operator", "zero"]
    )
    assert made.exit_code == 0, made.output
    report = growthlaw("evaluate", checkpoint, grown, "--corpus", tiny_corpus, "--windows", "6", "--drop-layers")
    base, target = report["checkpoints"]
    assert [drop["source_layer"] for drop in base["dropped_layers"]] == [None] * 3
    assert [(drop["source_layer"], drop["copy"]) for drop in target["dropped_layers"]] == [
        (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)
    ]  # fmt: skip
    assert [drop["rise_nats"]["value"] for drop in target["dropped_layers"][3:]] == [0, 0, 0]
    assert all(abs(drop["rise_nats"]["value"]) > 1e-3 for drop in target["dropped_layers"][:3])
    assert report["differences"][0]["loss_nats"]["value"] == 0


def test_two_checkpoints_on_named_sets(
    checkpoint: Path, other_checkpoint: Path, tiny_corpus: Path, tmp_path: Path, documents: list[str]
) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(documents)[:50_000])
    sets = [
        "--corpus",
        str(tiny_corpus),
        "--set",
        f"fit={tiny_corpus}:train",
        "--set",
        f"notes={tmp_path / 'notes.txt'}",
    ]
    report = growthlaw("evaluate", checkpoint, other_checkpoint, *sets, "--windows", "10", "--context-length", "32")
    assert [chosen["name"] for chosen in report["sets"]] == ["tiny", "fit", "notes"]
    assert [chosen["num_windows"] for chosen in report["sets"]] == [10, 10, 10]
    first, second = (one["losses"] for one in report["checkpoints"])
    for a, b, chosen, difference in zip(first, second, report["sets"], report["differences"], strict=True):
        mean = b["loss_nats"]["value"] - a["loss_nats"]["value"]
        assert difference["loss_nats"]["value"] == pytest.approx(mean, abs=1e-12)
        low, high = difference["loss_nats"]["interval"]
        assert low < mean < high
        assert a["perplexity"] == pytest.approx(math.exp(a["loss_nats"]["value"]), rel=1e-12)
        bits = a["loss_nats"]["value"] / math.log(2) / chosen["bytes_per_token"]
        assert a["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-12)
        assert chosen["bytes_basis"] == "windows"
    told = CliRunner().invoke(cli, ["evaluate", str(checkpoint), str(other_checkpoint), *sets, "--windows", "10"])
    assert "loss (nats/token)" in told.stdout
    assert "notes: B - A = " in told.stdout
    assert "95% interval" in told.stdout
    whole = growthlaw("evaluate", checkpoint, "--set", f"notes={tmp_path / 'notes.txt'}", "--all")["sets"][0]
    assert whole["num_windows"] == whole["num_windows_available"] > 10


def test_ready_made_tokens_without_a_tokenizer_have_no_bits_per_byte(
    checkpoint: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    tokens = ["--tokens", str(tiny_corpus / "train-00000.bin"), "--vocab-size", "512"]
    tokens += ["--validation-tokens", str(tiny_corpus / "validation-00000.bin"), "--data-dir", str(tmp_path)]
    assert CliRunner().invoke(cli, ["corpus", "prepare", "bare", *tokens]).exit_code == 0
    by_name = growthlaw("evaluate", checkpoint, "--corpus", "bare", "--data-dir", tmp_path, "--windows", "5")
    by_folder = growthlaw("evaluate", checkpoint, "--corpus", tiny_corpus, "--windows", "5")
    bare, known = (report["checkpoints"][0]["losses"][0] for report in (by_name, by_folder))
    assert bare["loss_nats"] == known["loss_nats"]
    assert bare["bits_per_byte"] is None
    assert known["bits_per_byte"]["value"] > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """Sets that cannot be used: too short, empty, and a corpus of another tokenizer."""
    made = tmp_path_factory.mktemp("sets")
    (made / "short.txt").write_text("a few words")
    (made / "empty.txt").write_text("")
    (made / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:30]))
    prepare_corpus(
        CorpusSpec(
            run_id="t",
            name="foreign",
            corpus_dir=str(made / "foreign"),
            sources=(str(made / "few.jsonl"),),
            vocab_size=300,
            validation_fraction=0.3,
        )
    )
    return made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to evaluate on"),
        (["--set", "notes"], "must be NAME=SOURCE"),
        (["--corpus", "nowhere"], "neither a prepared corpus .* nor a text file"),
        (["--set", "a={corpus}", "--set", "a={corpus}"], "two sets are named 'a'"),
        (["--corpus", "{corpus}", "--context-length", "65"], "context_length is 65, but .* was made for 64"),
        (["--set", "short={folder}/short.txt"], "fewer than a window of 64"),
        (["--set", "empty={folder}/empty.txt"], "holds no text"),
        (["--drop-layers", "--tasks", "x"], "--drop-layers needs a set"),
        (["--copying", "--tasks", "x"], "--copying needs a set"),
        (["--corpus", "{folder}/foreign"], "was made with another tokenizer than"),
    ],
)
def test_wrong_questions_are_answered_in_one_sentence(
    checkpoint: Path, tiny_corpus: Path, folder: Path, arguments: list[str], words: str
) -> None:
    filled = [argument.format(corpus=tiny_corpus, folder=folder) for argument in arguments]
    found = CliRunner().invoke(cli, ["evaluate", str(checkpoint), *filled])
    assert found.exit_code != 0
    assert isinstance(found.exception, ValueError | SystemExit)  # what the command prints without a traceback
    assert re.search(words, found.output + str(found.exception))
