"""The real process killed and paused anywhere: it goes on and ends as if nobody had touched it."""

import fcntl
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import PauseAfter, curve, events, has_line, outcome, stop_at

from app.contract import ExitCode
from app.engine.__main__ import main
from app.engine.launch import Pause

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


def test_killed_in_every_phase_it_ends_as_if_undisturbed(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run")
    for phase, min_tokens in (("base", 5_000), ("growth", 0), ("grown", 12_000)):
        assert stop_at(start_engine, run_dir, signal.SIGKILL, phase, min_tokens) == -signal.SIGKILL
        assert not (run_dir / "result.json").exists()
    # What a kill in the middle of a write leaves behind.
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"seq": 99999, "pha')
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(undisturbed)
    assert outcome(run_dir) == outcome(undisturbed)
    assert [event for event, _ in events(run_dir)].count("resumed") == 3


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_steps_it_ends_as_if_undisturbed(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, num_kills: int
) -> None:
    """With everything at growth that a restart could get wrong: moments that are kept, and a mask that opens."""
    options = {
        "growth__operator": "random", "growth__mask_tokens": 10_000,
        "growth__optimizer_state_policy": "keep_old_zero_new", "growth__learning_rate_policy": "rewind",
        "checkpoint_every_tokens": 1_000,
    }  # fmt: skip
    whole, run_dir = write_run(tmp_path / "whole", **options), write_run(tmp_path / "run", **options)
    assert run_engine(whole).returncode == ExitCode.DONE
    # One position at random in each equal part of the run: in the base, while the mask opens, and afterwards. A kill
    # falls on whatever the engine does just then.
    part = 52_000 // num_kills
    num_killed = 0
    for i, offset in enumerate(np.random.default_rng(num_kills).integers(640, part // 2, num_kills)):
        position = i * part + int(offset)
        phase, min_tokens = ("base", position) if position < 19_968 else ("grown", position - 19_968)
        if has_line(run_dir, phase, min_tokens):
            continue  # on a busy machine the life before came this far between its line and its death
        assert stop_at(start_engine, run_dir, signal.SIGKILL, phase, min_tokens) == -signal.SIGKILL
        num_killed += 1
    assert num_killed >= num_kills - 1
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(whole)
    assert outcome(run_dir) == outcome(whole)


def test_a_damaged_checkpoint_costs_time_but_not_the_curve(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run")
    assert stop_at(start_engine, run_dir, signal.SIGKILL, "base", 8_000) == -signal.SIGKILL
    newest = next(sorted((run_dir / "checkpoints").glob("tokens-*"))[-1].glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(undisturbed)
    assert outcome(run_dir) == outcome(undisturbed)
    damaged = [message for event, message in events(run_dir) if event == "checkpoint_damaged"]
    assert len(damaged) == 1
    assert newest.parent.name in damaged[0]


def test_a_pause_saves_and_the_same_command_goes_on(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run", checkpoint_every_tokens=10**9)
    assert stop_at(start_engine, run_dir, signal.SIGTERM, "base", 2_560) == ExitCode.PAUSED
    story = events(run_dir)
    assert [event for event, _ in story] == ["started", "checkpoint", "paused"]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [story[1][1]]
    assert stop_at(start_engine, run_dir, signal.SIGINT, "grown", 0) == ExitCode.PAUSED
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(undisturbed)
    assert outcome(run_dir) == outcome(undisturbed)


def test_paused_between_two_lines_it_averages_over_all_their_steps(
    tmp_path: Path, write_run: Write, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run", checkpoint_every_tokens=10**9)
    # A line every 5 steps: two steps after a line of the base, before its first step grown, two steps after a line.
    for num_steps, position in ((7, "0000896-base"), (149, "0019968-grown"), (57, "0027264-grown")):
        assert main([str(run_dir)], PauseAfter(1 + num_steps)) == ExitCode.PAUSED
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[-1].endswith(position)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    assert curve(run_dir) == curve(undisturbed)
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_second_engine_waits_and_then_finds_the_work_done(undisturbed: Path, start_engine: Start) -> None:
    with open(undisturbed / ".engine.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = [start_engine(undisturbed) for _ in range(2)]
        for process in waiting:
            assert process.stdout is not None
            assert "another engine is at work" in process.stdout.readline()
        waiting[0].send_signal(signal.SIGTERM)
        waiting[0].communicate()
        assert waiting[0].returncode == ExitCode.PAUSED
    waiting[1].communicate()
    assert waiting[1].returncode == ExitCode.DONE


# --- CUDA --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_trains_in_bf16_and_resumes_bit_for_bit(
    tmp_path: Path, write_run: Write, start_engine: Start, run_engine: Run
) -> None:
    options = {"device": "cuda", "precision": "bf16"}
    whole, killed = write_run(tmp_path / "whole", **options), write_run(tmp_path / "killed", **options)
    assert run_engine(whole).returncode == ExitCode.DONE
    assert stop_at(start_engine, killed, signal.SIGKILL, "grown", 5_000) == -signal.SIGKILL
    assert run_engine(killed).returncode == ExitCode.DONE
    assert curve(killed) == curve(whole)
    assert outcome(killed) == outcome(whole)
