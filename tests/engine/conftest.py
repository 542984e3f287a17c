"""A small corpus of real text and small runs for the engine's tests."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.contract import ExitCode

REPOSITORY = Path(__file__).parents[2]
VOCAB_SIZE = 512
# Modules of every CPython 3.11 and later; the text itself is the interpreter's own copy.
TRAIN_MODULES = ("argparse", "ast", "datetime", "decimal", "difflib", "doctest", "enum", "inspect", "typing", "pdb")
VALIDATION_MODULES = ("pathlib", "random")


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of the standard library, byte-level BPE of 512 tokens; train lies in two files."""
    folder = tmp_path_factory.mktemp("corpus")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    texts = {
        "train": [_source(stdlib, name) for name in TRAIN_MODULES],
        "validation": [_source(stdlib, name) for name in VALIDATION_MODULES],
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts["train"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    splits: dict[str, Any] = {}
    digest = hashlib.sha256()
    for split, documents in texts.items():
        ids = np.concatenate([[*tokenizer.encode(text).ids, 0] for text in documents]).astype("<u2")
        digest.update(ids.tobytes())
        cut = len(ids) // 3  # not a multiple of anything, so that windows cross files
        parts = (ids[:cut], ids[cut:]) if split == "train" else (ids,)
        for i, part in enumerate(parts):
            part.tofile(folder / f"{split}-{i:05d}.bin")
        splits[split] = {
            "files": [f"{split}-{i:05d}.bin" for i in range(len(parts))],
            "num_tokens": len(ids),
            "num_bytes": sum(len(text.encode()) for text in documents),
            "num_documents": len(documents),
        }
    manifest = {
        "version": 1, "name": "stdlib", "content_hash": digest.hexdigest(), "vocab_size": VOCAB_SIZE,
        "dtype": "uint16", "splits": splits,
    }  # fmt: skip
    (folder / "corpus.json").write_text(json.dumps(manifest))
    return folder


def _source(stdlib: Path, module: str) -> str:
    path = stdlib / f"{module}.py"
    return (path if path.exists() else stdlib / module / "__init__.py").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def spec_values(corpus_dir: Path) -> Callable[..., dict[str, Any]]:
    """A function giving spec.json's values: 2 layers of hidden 16 grown to 4, overridden by dotted field names."""
    values: dict[str, Any] = {
        "run_id": "run-1",
        "name": "a tiny grown run",
        "cohort": "tests",
        "corpus": "stdlib",
        "corpus_dir": str(corpus_dir),
        "model": {
            "num_layers": 4, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32,
            "vocab_size": VOCAB_SIZE, "context_length": 32,
        },
        "growth": {"num_base_layers": 2, "growth_timing_tokens": 20_000},
        "training": {"tokens": 40_000, "peak_lr": 1e-2, "batch_sequences": 4, "warmup_tokens": 2_000},
        "evaluation": {"every_tokens": 2_560, "num_windows": 8},
        "init_seed": 3,
        "data_seed": 5,
        "device": "cpu",
        "checkpoint_every_tokens": 3_000,
    }  # fmt: skip

    def make(**overrides: Any) -> dict[str, Any]:
        made = copy.deepcopy(values)
        for dotted, value in overrides.items():
            *parents, field = dotted.split("__")
            target = made
            for parent in parents:
                target = target[parent]
            target[field] = value
        return made

    return make


@pytest.fixture(scope="session")
def write_run(spec_values: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """A function that makes a run directory with its spec.json."""

    def write(run_dir: Path, **overrides: Any) -> Path:
        run_dir.mkdir(parents=True)
        (run_dir / "spec.json").write_text(json.dumps(spec_values(**overrides)))
        return run_dir

    return write


@pytest.fixture(scope="session")
def start_engine() -> Callable[..., subprocess.Popen[str]]:
    """A function that starts the real process on a run directory."""

    def start(run_dir: Path, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "app.engine", str(run_dir)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def run_engine(start_engine: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the real process to its end."""

    def run(run_dir: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        process = start_engine(run_dir, **options)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    write_run: Callable[..., Path],
    run_engine: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """A run of the default spec that nobody stopped."""
    run_dir = write_run(tmp_path_factory.mktemp("undisturbed") / "run")
    ended = run_engine(run_dir)
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")
    return run_dir
