"""Several real processes on one run: the same data, the same numbers, and what is left when some of them are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from engine_runs import BY_THE_CLOCK, curve, exported, read_metrics

from app.contract import ExitCode, Spec, SpecError
from app.engine.__main__ import main
from app.engine.checkpoints import open_checkpoint
from app.engine.data import open_corpus, share_of_rank, train_windows
from app.engine.launch import Nodes, Pause, run_code, start_ranks
from app.records import from_dict

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]

REPOSITORY = Path(__file__).parents[2]
KILLED = 128 + signal.SIGKILL
# 10 steps of base and 20 grown; moments are grown too, and checkpoints fall between lines.
SMALL: dict[str, Any] = {
    "growth__growth_timing_tokens": 1_280,
    "growth__optimizer_state_policy": "copy",
    "training__tokens": 2_560,
    "training__warmup_tokens": 320,
    "evaluation__every_tokens": 640,
    "checkpoint_every_tokens": 320,
}
# Largest difference of losses and gradient norms between one and two processes over these 30 steps: measured 1e-6.
TOLERANCE = 1e-5


def assert_close(ours: Path, reference: Path) -> None:
    """The same lines, values apart by no more than sums in another order make them."""
    a, b = read_metrics(ours), read_metrics(reference)
    assert [(m.seq, m.phase, m.tokens, m.metric) for m in a] == [(m.seq, m.phase, m.tokens, m.metric) for m in b]
    apart = {m.metric: 0.0 for m in a}
    for m, n in zip(a, b, strict=True):
        if m.metric not in BY_THE_CLOCK:
            apart[m.metric] = max(apart[m.metric], abs(m.value - n.value))
    print({metric: value for metric, value in apart.items() if value})
    assert all(value < TOLERANCE for value in apart.values()), apart


def at_work(run_dir: Path, phase: str, min_tokens: int, process: subprocess.Popen[str]) -> None:
    """Until the run has come so far; fails if it ends first."""
    path = run_dir / "metrics.jsonl"
    while True:
        if process.poll() is not None:
            pytest.fail(f"the engine ended with {process.returncode} too early: {process.communicate()}")
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if any(line["phase"] == phase and line["tokens"] >= min_tokens for line in lines):
            return
        time.sleep(0.01)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Both ranks, in order; waits where the launcher has not started them yet."""
    while process.poll() is None:
        children = psutil.Process(process.pid).children()
        # Between fork and exec a child still has the launcher's environment.
        with contextlib.suppress(KeyError, psutil.Error):
            if len(children) == 2:
                return sorted(children, key=lambda child: int(child.environ()["RANK"]))
        time.sleep(0.01)
    pytest.fail(f"the engine ended with {process.returncode} before its ranks were seen: {process.communicate()}")


def set_processes(run_dir: Path, num_processes: int) -> None:
    spec = json.loads((run_dir / "spec.json").read_text())
    (run_dir / "spec.json").write_text(json.dumps({**spec, "num_processes": num_processes}))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, write_run: Write) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("one") / "run", **SMALL)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    return run_dir


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, write_run: Write, run_engine: Run) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("two") / "run", num_processes=2, **SMALL)
    ended = run_engine(run_dir)
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")
    return run_dir


# --- the data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (4, 4), (4, 1), (2, 4)])
def test_the_ranks_read_together_what_one_process_reads(
    spec_values: Callable[..., dict[str, Any]], sizes: tuple[int, int]
) -> None:
    """Token for token over three steps, with a restart at another world size after the second."""
    spec = from_dict(Spec, spec_values(**SMALL))
    stream, context, batch = open_corpus(spec).train, spec.model.context_length, spec.training.batch_sequences

    def read(step: int, rank: int, size: int) -> Any:
        sequences = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
        part = sequences[share_of_rank(batch, rank=rank, size=size)]
        indices = train_windows(part, num_windows=stream.num_windows(context), data_seed=spec.data_seed)
        return stream.windows(indices, context)

    alone = np.concatenate([read(step, 0, 1) for step in range(3)])
    steps = [(0, sizes[0]), (1, sizes[0]), (2, sizes[1])]
    together = np.concatenate([read(step, rank, size) for step, size in steps for rank in range(size)])
    assert np.array_equal(together, alone)
    assert len(np.unique(alone, axis=0)) == 3 * batch


# --- the numbers -------------------------------------------------------------------------------------------


def test_two_processes_follow_one(one: Path, two: Path) -> None:
    assert_close(two, one)
    for (name, ours), (same_name, reference) in zip(exported(two), exported(one), strict=True):
        assert name == same_name
        if name.suffix != ".safetensors":
            assert ours == reference


def test_only_one_of_them_writes(two: Path) -> None:
    assert {path.name for path in two.iterdir()} == {
        "spec.json", "metrics.jsonl", "events.jsonl", "result.json", "exports", ".engine.lock",
    }  # fmt: skip
    story = [json.loads(line) for line in (two / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in story] == list(range(1, len(story) + 1))
    saved = [line["message"] for line in story if line["event"] == "checkpoint"]
    assert saved == sorted(set(saved))
    assert [line["event"] for line in story if line["event"] != "checkpoint"] == [
        "started",
        "growing",
        "growth",
        "finished",
    ]


# --- kills and pauses --------------------------------------------------------------------------------------


def test_one_of_two_killed_it_ends_as_if_undisturbed(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, two: Path
) -> None:
    run_dir = write_run(tmp_path / "run", num_processes=2, **SMALL)
    process = start_engine(run_dir)
    at_work(run_dir, "grown", 640, process)
    ranks_of(process)[1].kill()
    _, stderr = process.communicate()
    assert process.returncode == KILLED
    assert "another process of this run is gone" in stderr
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(two)
    assert exported(run_dir) == exported(two)


def test_paused_at_two_it_goes_on_at_one(tmp_path: Path, write_run: Write, start_engine: Start, one: Path) -> None:
    run_dir = write_run(tmp_path / "run", num_processes=2, **SMALL)
    process = start_engine(run_dir)
    at_work(run_dir, "base", 320, process)
    process.terminate()
    process.communicate()
    assert process.returncode == ExitCode.PAUSED
    set_processes(run_dir, 1)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    assert_close(run_dir, one)


@pytest.mark.long
def test_killed_ten_times_at_two_processes_it_ends_as_if_undisturbed(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, two: Path
) -> None:
    """One rank or both, at random moments from the start-up on."""
    random = np.random.default_rng(0)
    run_dir = write_run(tmp_path / "run", num_processes=2, **SMALL)
    lines = [(m.phase, m.tokens) for m in read_metrics(two) if m.metric == "train_loss"]
    # The last steps are left out: on a fast machine the run would end before the blow.
    for i, position in enumerate(sorted(random.choice(len(lines) - 12, size=10, replace=False))):
        process = start_engine(run_dir)
        at_work(run_dir, *lines[position], process)
        time.sleep(random.uniform(0, 0.1))
        for rank in ranks_of(process) if i % 2 else ranks_of(process)[i // 2 % 2 :][:1]:
            rank.kill()
        process.communicate()
        assert process.returncode == KILLED
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(two)
    assert exported(run_dir) == exported(two)


@pytest.mark.long
def test_divergence_is_agreed(tmp_path: Path, write_run: Write, run_engine: Run) -> None:
    values = {**SMALL, "training__peak_lr": 30.0, "training__warmup_tokens": 2_000, "checkpoint_every_tokens": 128}
    run_dir = write_run(tmp_path / "run", num_processes=2, **values)
    ended = run_engine(run_dir)
    assert ended.returncode == ExitCode.DIVERGED
    assert ended.stderr.count("\n") == 1
    assert json.loads((run_dir / "result.json").read_text())["status"] == "diverged"
    newest = sorted((run_dir / "checkpoints").glob("tokens-*"))[-1]
    assert json.loads((newest / "checkpoint.json").read_text())["progress"]["num_high_lines"] == 0


# --- many ranks' checkpoints -------------------------------------------------------------------------------


def test_what_two_ranks_write_one_reads_and_the_other_way_round(tmp_path: Path) -> None:
    """Most of it is in ranks_at_work.py, which torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(Path(__file__).with_name("ranks_at_work.py")), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    newest = tmp_path / "checkpoints" / "tokens-000000000000003-single"
    assert len(list(newest.glob("*.safetensors"))) == 2
    model, optimizer = open_checkpoint(newest).read_whole()
    want = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert {f"model.{name}" for name in model} == want.keys()
    assert all(torch.equal(tensor, want[f"model.{name}"]) for name, tensor in model.items())
    assert optimizer.keys() == model.keys()
    assert all(float(state["step"]) == 3 for state in optimizer.values())


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], ExitCode.DONE),
        ([75, 75], ExitCode.PAUSED),
        ([1, -signal.SIGKILL], KILLED),  # the one that was left lost its partner
        ([ExitCode.BUG, ExitCode.NO_SPACE], ExitCode.NO_SPACE),
        ([ExitCode.DIVERGED], ExitCode.DIVERGED),  # the others had to be killed
        ([1, 1], ExitCode.BUG),
    ],
)
def test_of_several_exit_codes_the_one_that_says_most_counts(codes: list[int], code: int) -> None:
    assert run_code(codes) == code


def test_machines_get_equally_many_ranks_and_the_first_speaks_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run over two machines is in tests/jobs/test_slurm.py; here is what each of them does on its own."""
    assert Nodes.from_environment({}) == Nodes(rank=0, count=1)
    monkeypatch.setenv("GROWTHLAW_NUM_NODES", "2")
    monkeypatch.setenv("GROWTHLAW_NODE_RANK", "1")
    nodes = Nodes.from_environment(os.environ)
    assert nodes == Nodes(rank=1, count=2)
    assert start_ranks(str(tmp_path), 3, nodes, lambda: False) == ExitCode.BAD_SPEC
    assert "num_processes is 3, but 2 machines get equally many" in capsys.readouterr().err
    # A directory without a spec: the first machine says so, the second has nothing to say.
    assert main([str(tmp_path)], Pause()) == ExitCode.DONE
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("GROWTHLAW_NODE_RANK", "0")
    assert main([str(tmp_path)], Pause()) == ExitCode.BAD_SPEC


# --- refusals ----------------------------------------------------------------------------------------------


def test_another_number_of_processes_than_the_specs_is_refused(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_run(tmp_path / "run", num_processes=2, **SMALL)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert main([str(run_dir)], Pause()) == ExitCode.BAD_SPEC
    assert "num_processes is 2, but 1 were started (WORLD_SIZE); start 2 with torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_processes": 3}, r"num_processes is 3.*it must divide training.batch_sequences \(4\)"),
        ({"num_processes": 0}, r"num_processes is 0"),
        ({"num_processes": 4, "evaluation__num_windows": 6}, r"divide evaluation.num_windows \(6\)"),
        (
            {"num_processes": 2, "micro_batch_sequences": 4},
            r"micro_batch_sequences is 4.*share of a batch, 2 sequences",
        ),
    ],
)
def test_shares_must_be_equal(
    spec_values: Callable[..., dict[str, Any]], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        from_dict(Spec, spec_values(**overrides))
