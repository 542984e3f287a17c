"""The LM evaluation harness on a local task over real text, its accuracy counted again by hand; nothing is fetched."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from app.cli import cli
from app.engine.assess.checkpoint import find_checkpoint, load_checkpoint

NUM_QUESTIONS = 24

TASK = """
task: continuation
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture
def rows(tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Which of two pieces of the bundled corpus goes on from here? The task lies in tmp_path."""
    pytest.importorskip(
        "lm_eval", reason="the extra 'eval' is not installed: pip install -c constraints.txt -e '.[eval]'"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    long = [text for text in documents if len(text) > 500 and text.isascii()]
    made = []
    for i in range(NUM_QUESTIONS):
        start = rng.randrange(len(long[i]) - 130)
        other = long[(i + 5) % len(long)]
        place = rng.randrange(len(other) - 30)
        right, wrong = long[i][start + 60 : start + 80], other[place : place + 20]
        answer = i % 2
        choices = [wrong, right] if answer else [right, wrong]
        made.append({"start": long[i][start : start + 60], "choices": choices, "answer": answer})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "continuation.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    return made


def test_a_local_task_scores_what_counting_by_hand_scores(
    checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    arguments = ["--tasks", "continuation", "--task-dir", str(tmp_path), "--json"]
    found = CliRunner().invoke(cli, ["evaluate", str(checkpoint), *arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    (score,) = json.loads(found.stdout.splitlines()[-1])["checkpoints"][0]["tasks"]
    assert (score["task"], score["metric"], score["num_samples"]) == ("continuation", "acc", NUM_QUESTIONS)

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = load_checkpoint(find_checkpoint(checkpoint), device="cpu", precision="fp32").model

    def log_likelihood(start: str, choice: str) -> float:
        ids = torch.tensor([tokenizer.encode(start + choice).ids])
        num_start = len(tokenizer.encode(start).ids)
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
        return float(sum(log_p[i - 1, ids[0, i]] for i in range(num_start, ids.shape[1])))

    right = [
        max((0, 1), key=lambda c: log_likelihood(row["start"], row["choices"][c])) == row["answer"] for row in rows
    ]
    assert score["value"] == pytest.approx(sum(right) / NUM_QUESTIONS, abs=1e-9)
    share = sum(right) / NUM_QUESTIONS
    assert score["standard_error"] == pytest.approx((share * (1 - share) / (NUM_QUESTIONS - 1)) ** 0.5, rel=1e-6)


def test_a_missing_task_folder_is_refused(checkpoint: Path, tmp_path: Path, rows: Any) -> None:
    arguments = ["--tasks", "continuation", "--task-dir", str(tmp_path / "nowhere")]
    found = CliRunner().invoke(cli, ["evaluate", str(checkpoint), *arguments])
    assert "task_dir " in str(found.exception)
    assert "is no folder" in str(found.exception)


@pytest.mark.long
def test_an_unknown_task_is_refused(checkpoint: Path, tmp_path: Path, rows: Any) -> None:
    """Long: the harness reads its thousands of YAML files to know that a task is none of them."""
    arguments = ["--tasks", "no_such_task", "--task-dir", str(tmp_path)]
    found = CliRunner().invoke(cli, ["evaluate", str(checkpoint), *arguments])
    assert "tasks holds 'no_such_task', which is none" in str(found.exception)
