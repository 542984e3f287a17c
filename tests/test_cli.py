"""The command as people run it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import VERBS

ROOT = Path(__file__).parents[1]


def growthlaw(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    helped = growthlaw(verb, "--help")
    assert helped.returncode == 0
    assert "Usage: " in helped.stdout
    assert len(helped.stdout.splitlines()) > 5


def test_recommend_works_without_a_service() -> None:
    asked = growthlaw(
        "recommend", "--target-params", "7e9", "--token-budget", "2e12", "--guideline", "published:gstack", "--json"
    )
    assert asked.returncode == 0, asked.stderr
    (line,) = asked.stdout.splitlines()
    answer = json.loads(line)
    assert answer["decision"] == "grow"
    assert round(answer["growth_timing_tokens"] / 1e9, 2) == 11.11
    told = growthlaw("recommend", "--target-params", "7e9", "--token-budget", "2e12", "--guideline", "published:gstack")
    assert "GROW" in told.stdout
    assert "11.11B tokens" in told.stdout


def test_recommend_says_the_published_rule_is_infeasible() -> None:
    asked = growthlaw(
        "recommend", "--target-params", "3e9", "--token-budget", "5.5556e9", "--guideline", "published:gstack"
    )
    assert asked.returncode == 0
    assert "INFEASIBLE" in asked.stdout
    assert "57.99B" in asked.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("recommend", "--target-params", "-1", "--token-budget", "2e12", "--guideline", "published:gstack"),
            "target_params",
        ),
        (
            ("recommend", "--target-params", "nan", "--token-budget", "2e12", "--guideline", "published:null"),
            "target_params",
        ),
        (
            ("recommend", "--target-params", "7e9", "--token-budget", "2e12", "--guideline", "published:no"),
            "published:gstack",
        ),
        (
            ("recommend", "--target-params", "7e9", "--token-budget", "2e12", "--guideline", "none.json"),
            "does not exist",
        ),
        (("recommend", "--target-params", "7e9", "--token-budget", "2e12"), "growthlaw serve"),
        (("corpus", "prepare", "../x"), "names match"),
        (("corpus", "prepare", "x", "nowhere.txt"), "does not exist"),
        (("corpus", "prepare", "x", "--vocab-size", "12"), "vocab_size"),
        (("jobs", "list"), "growthlaw serve"),
        (("grow", "nowhere.json"), "nowhere.json"),
    ],
)
def test_errors_are_one_sentence_and_exit_is_not_zero(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    failed = growthlaw(*arguments, cwd=tmp_path, GROWTHLAW_URL="http://127.0.0.1:9")
    assert failed.returncode in (1, 2)
    assert words in failed.stderr
    assert "Traceback" not in failed.stderr


def test_corpus_prepare_and_list(tmp_path: Path, documents_file: Path) -> None:
    prepared = growthlaw(
        "corpus", "prepare", "mine", str(documents_file), "--vocab-size", "300", "--json", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    summary = json.loads(prepared.stdout)
    assert summary["vocab_size"] == 300
    listed = json.loads(growthlaw("corpus", "list", "--json", cwd=tmp_path).stdout)
    assert [corpus["name"] for corpus in listed] == ["mine"]
    assert listed[0]["train_tokens"] == summary["train_tokens"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, documents_file: Path) -> None:
    """A file-size limit stands in for the full disk: the write fails in the same place, at the same time."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from app.cli import main; sys.argv[0] = 'growthlaw'; main()"
    )
    failed = subprocess.run(
        [sys.executable, "-c", code, "corpus", "prepare", "mine", str(documents_file)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert failed.returncode == 1
    assert "File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list((tmp_path / "growthlaw-data" / "corpora").iterdir()) == []


@pytest.mark.parametrize("verb", [["--help"], ["recommend", "--help"], ["jobs", "--help"]])
def test_light_verbs_load_no_heavy_library(verb: list[str]) -> None:
    code = f"import sys; sys.argv = ['growthlaw', *{verb!r}]\ntry:\n import app.cli; app.cli.main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'fastapi', 'scipy', 'pandas') if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert loaded.stdout.splitlines()[-1] == "[]"
