"""The exec launcher when its scheduler misbehaves: a small one that hangs, floods, answers garbage, forgets, is away."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from simple_settings import TEMPLATE, simple_settings, work, write_settings

from app.contract import ExitCode
from app.jobs.launchers import exec as exec_launcher
from app.jobs.launchers.base import Launcher, Poll, SchedulerAway, Submission, Work
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_settings import read_exec_settings
from app.store.ids import new_id
from fitting.errors import InputError


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def new(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExecLauncher]:
    monkeypatch.setattr(exec_launcher, "SECONDS_TO_TRY_AGAIN", 0.2)
    monkeypatch.setattr(exec_launcher, "SECONDS_OF_HURRY", 0.1)

    def make(template: str = TEMPLATE, **changes: Any) -> ExecLauncher:
        path = write_settings(tmp_path / "settings", simple_settings(state, **changes), template)
        return ExecLauncher(tmp_path / "runs", read_exec_settings(path))

    return make


def mode(state: Path, name: str) -> None:
    (state / "mode").write_text(name)


def calls(state: Path, verb: str) -> int:
    """How often the scheduler was asked for this."""
    return sum(line.split()[0] == verb for line in (state / "calls").read_text().splitlines())


def submitted(launcher: Launcher, asked: Work, until: Any) -> Submission:
    found = until(lambda: launcher.submit(asked), "it is submitted")
    assert isinstance(found, Submission)
    return found


def ended(launcher: Launcher, handle: str, until: Any) -> Poll:
    until(lambda: launcher.poll(handle).state in ("ended", "lost"), "it has ended")
    return launcher.poll(handle)


def test_it_ends_with_its_exit_code_and_a_second_look_says_the_same(new: Any, tmp_path: Path, until: Any) -> None:
    launcher = new()
    asked = work(tmp_path / "runs")  # without a spec, which the engine says at once
    first = submitted(launcher, asked, until)
    assert launcher.submit(asked) == first
    assert first.where == "Simple job 1"
    poll = ended(launcher, first.handle, until)
    assert (poll.state, poll.exit_code) == ("ended", ExitCode.BAD_SPEC)
    assert launcher.poll(first.handle) == poll
    assert "spec.json" in launcher.logs(first.handle, asked.run_dir, max_bytes=1_000)
    # A service that comes back after the scheduler has forgotten the job still learns how it ended.
    (tmp_path / "state" / "job-1" / "forgotten").touch()
    again = new()
    again.recover({asked.job_id: first.handle})
    late = ended(again, first.handle, until)
    assert (late.state, late.exit_code, "forgotten" in late.message) == ("ended", ExitCode.BAD_SPEC, True)


def test_work_that_is_nobodys_is_refused(new: Any, tmp_path: Path, state: Path) -> None:
    launcher = new()
    runs = tmp_path / "runs"
    good = work(runs).run_dir
    linked = work(runs).run_dir
    (linked / "exec").symlink_to(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    for changes in (
        {"run_dir": outside},
        {"run_dir": runs / ".." / "outside"},
        {"run_dir": runs / "$(reboot)"},
        {"run_dir": runs / "a b"},
        {"run_dir": good, "job_id": "job_x; reboot"},
        {"run_dir": good, "job_id": "--wrap=reboot"},
        {"run_dir": good, "job_id": "../../x"},
        {"run_dir": linked},
    ):
        asked = Work(**({"job_id": new_id("job"), "kind": "growth", "device": "cpu"} | changes))
        with pytest.raises(InputError):
            _look_thrice(launcher, asked)
    assert calls(state, "submit") == 0
    assert list(outside.iterdir()) == []


def _look_thrice(launcher: Launcher, asked: Work) -> None:
    for _ in range(3):
        launcher.submit(asked)


def test_a_root_that_a_command_cannot_take_is_refused_at_the_start(tmp_path: Path, state: Path) -> None:
    path = write_settings(tmp_path / "settings", simple_settings(state))
    with pytest.raises(InputError, match="without quotes"):
        ExecLauncher(tmp_path / "my runs; reboot", read_exec_settings(path))


@pytest.mark.parametrize("trouble", ["away", "hang", "flood"])
def test_a_scheduler_that_does_not_answer_loses_no_job(
    new: Any, tmp_path: Path, state: Path, until: Any, trouble: str
) -> None:
    slow = "sleep 1000\n"
    short = {f"{verb}__timeout_seconds": 1.0 for verb in ("find", "submit", "poll", "cancel", "kill")}
    launcher = new(slow, **short)
    asked = work(tmp_path / "runs")
    mode(state, trouble)
    with pytest.raises(SchedulerAway, match="Simple does not take it"):
        until(lambda: launcher.submit(asked), "it is submitted")
    mode(state, "")
    handle = until(lambda: _try(launcher, asked), "it is submitted").handle
    until(lambda: launcher.poll(handle).state == "running", "it runs")
    mode(state, trouble)
    until(lambda: "Simple does not answer" in launcher.poll(handle).message, "it cannot be asked for")
    assert launcher.poll(handle).state == "running"
    # What is asked for meanwhile is asked for again once the scheduler is back.
    launcher.cancel(handle, kill=True)
    until(lambda: launcher.poll(handle).state == "running" and calls(state, "signal_job"), "it was to be killed")
    mode(state, "")
    poll = ended(launcher, handle, until)
    assert (poll.state, poll.exit_code) == ("ended", None)
    assert calls(state, "submit") == 1
    # Commands run in the settings' folder, and so do the jobs of this scheduler.
    assert not [found for found in psutil.process_iter(["cwd"]) if found.info["cwd"] == str(tmp_path / "settings")]


def _try(launcher: Launcher, asked: Work) -> Submission | None:
    try:
        return launcher.submit(asked)
    except SchedulerAway:
        return None


def test_an_answer_without_an_id_starts_nothing_twice(new: Any, tmp_path: Path, state: Path, until: Any) -> None:
    launcher = new("sleep 1000\n")
    asked = work(tmp_path / "runs")
    mode(state, "garbage")
    until(lambda: launcher.submit(asked) or calls(state, "submit"), "it is given to the scheduler")
    mode(state, "")  # before it is looked for
    found = submitted(launcher, asked, until)
    assert found.where == "Simple job 1"
    launcher.cancel(found.handle, kill=True)
    ended(launcher, found.handle, until)
    # Garbage for good: it is not known whether it runs, so it is not submitted again.
    other = work(tmp_path / "runs")
    mode(state, "garbage")
    with pytest.raises(OSError, match=r"finds no id in its answer: %!@ welcome to the machine"):
        until(lambda: launcher.submit(other), "it is submitted")
    assert calls(state, "submit") == 2
    os.killpg(int((state / "job-2" / "pid").read_text()), signal.SIGKILL)


def test_a_refused_job_fails_with_the_schedulers_words(new: Any, tmp_path: Path, state: Path, until: Any) -> None:
    launcher = new()
    mode(state, "refuse")
    asked = work(tmp_path / "runs")
    with pytest.raises(OSError, match="Simple refused it: no such queue"):
        until(lambda: launcher.submit(asked), "it is submitted")


def test_a_submission_of_a_service_that_was_killed_is_waited_for(
    new: Any, tmp_path: Path, state: Path, until: Any
) -> None:
    """Its command may still be at work: it holds the lock, by a descriptor of its own, until it ends."""
    asked = work(tmp_path / "runs")
    (asked.run_dir / "exec").mkdir()
    with open(asked.run_dir / "exec" / "submitting", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    launcher = new()
    for _ in range(20):
        assert launcher.submit(asked) is None
    assert calls(state, "find") == 0
    old.communicate()
    found = submitted(launcher, asked, until)
    ended(launcher, found.handle, until)


@pytest.mark.parametrize(
    ("word", "exit_file", "state_name", "exit_code"),
    [
        ("state=E 3", None, "ended", 3),
        ("state=E 3:9", None, "ended", -9),
        ("state=E x:y", "70", "ended", 70),
        ("state=E", "75", "ended", 75),
        ("state=K 0", None, "ended", None),  # the scheduler's own doing: its 0 is not the engine's
        ("state=K 0", "75", "ended", 75),
        ("state=M", "137", "ended", ExitCode.OUT_OF_MEMORY),
        ("state=E 4 no such job", None, "ended", 4),  # words of a job that is known
        ("no such job", None, "lost", None),
        ("no such job", "70", "ended", 70),
        ("no such job", "garbage", "lost", None),
        ("no such job", "1000", "lost", None),
    ],
)
def test_how_a_job_ended(
    new: Any,
    tmp_path: Path,
    state: Path,
    until: Any,
    word: str,
    exit_file: str | None,
    state_name: str,
    exit_code: int | None,
) -> None:
    launcher = new("true\n")
    asked = work(tmp_path / "runs")
    handle = submitted(launcher, asked, until).handle
    if exit_file is not None:
        (asked.run_dir / "exec" / "1.exit").write_text(exit_file + "\n")
    (state / "job-1" / "word").write_text(word)
    poll = ended(launcher, handle, until)
    assert (poll.state, poll.exit_code) == (state_name, exit_code)


def test_a_word_that_is_not_sorted_ends_nothing(new: Any, tmp_path: Path, state: Path, until: Any) -> None:
    launcher = new("true\n")
    handle = submitted(launcher, work(tmp_path / "runs"), until).handle
    (state / "job-1" / "word").write_text("state=ODD")
    until(lambda: "'ODD', which poll.states does not sort" in launcher.poll(handle).message, "it says so")
    (state / "job-1" / "word").write_text("something else")
    until(lambda: "is not understood: something else" in launcher.poll(handle).message, "it says so")
    assert launcher.poll(handle).state == "waiting"
    (state / "job-1" / "word").unlink()
    ended(launcher, handle, until)


def test_an_old_list_of_machines_is_read_again_before_it_is_told(
    new: Any, state: Path, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_launcher, "SECONDS_FOR_MACHINES", 60.0)
    launcher = new(nodes__every_seconds=1)
    started = time.monotonic()
    seen_at = launcher.nodes()[0].heartbeat_at
    assert calls(state, "nodes") == 1
    until(lambda: time.monotonic() > started + 1, "the list is old")
    assert launcher.nodes()[0].heartbeat_at > seen_at
    assert calls(state, "nodes") == 2
    # A scheduler that is away: what it said last, and when.
    mode(state, "away")
    until(lambda: launcher.nodes() and calls(state, "nodes") == 3, "it is asked for again")
    assert [node.name for node in launcher.nodes()] == ["a", "b", "c"]


def test_room_is_what_the_scheduler_lists(new: Any, tmp_path: Path, state: Path, until: Any) -> None:
    launcher = new("sleep 1000\n", max_jobs=1, cpu__cpus_per_process=2)
    assert [(node.name, node.engine, len(node.devices)) for node in launcher.nodes()] == [
        ("a", "exec", 1), ("b", "exec", 10), ("c", "exec", 10),
    ]  # fmt: skip
    runs = tmp_path / "runs"
    for changes, words in (
        ({"num_processes": 16, "device": "cuda"}, "needs 16 GPUs, the largest node has 8"),
        ({"num_processes": 16, "device": "auto"}, "needs 16 GPUs, the largest node has 8"),
        ({"num_processes": 3}, "needs 3 CPU slots, the largest node has 2"),
        (
            {"num_processes": 24, "num_nodes": 3, "device": "cuda"},
            "needs 8 GPUs on each, 2 nodes have as many and the largest has 8",
        ),
        ({"num_processes": 3, "num_nodes": 2}, "must divide num_processes"),
    ):
        with pytest.raises(InputError) as caught:
            launcher.fit(work(runs, **changes))
        assert words in str(caught.value)
    assert launcher.fit(work(runs, num_processes=16, num_nodes=2, device="cuda")) == "now"
    asked = work(runs)
    assert launcher.fit(asked) == "now"
    handle = submitted(launcher, asked, until).handle
    assert launcher.fit(work(runs)) == "later"
    (asked.run_dir / "exec" / "1.nodes").write_text("b\n")
    busy = [(node.name, device.index) for node in launcher.nodes() for device in node.devices if device.job_id]
    assert busy == [("b", 0)]
    launcher.cancel(handle, kill=True)
    ended(launcher, handle, until)
    assert launcher.fit(work(runs)) == "now"
    assert [device for node in launcher.nodes() for device in node.devices if device.job_id] == []
