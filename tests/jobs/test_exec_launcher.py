"""The exec launcher without a cluster: what its settings refuse, what values cannot do, and schedulers that misbehave."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract import ExitCode
from app.jobs.launchers import exec as exec_launcher
from app.jobs.launchers.base import Launcher, Poll, SchedulerAway, Submission, Work
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_command import RunningCommand
from app.jobs.launchers.exec_nodes import host_names
from app.jobs.launchers.exec_settings import read_exec_settings
from app.jobs.launchers.exec_template import SHIPPED, check_placeholders, fill, write_shipped
from app.store.ids import new_id
from fitting.errors import InputError

SCHEDULER = Path(__file__).with_name("simple_scheduler.py")
TEMPLATE = """\
#!/bin/bash
export RUN_DIR={{run_dir|shell}} PYTHONPATH={{package_root|shell}}
echo a > "$RUN_DIR/exec/$SIMPLE_ID.nodes"
{{python|shell}} -m {{module}} "$RUN_DIR" >> {{log_file|shell}} 2>&1 &
trap 'kill -TERM $!' TERM
wait $!
code=$?
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
echo "$code" > "$RUN_DIR/exec/$SIMPLE_ID.exit"
"""


def simple_settings(state: Path, **changes: Any) -> dict[str, Any]:
    """Settings for the simple scheduler; `table__key=value` changes one, None takes it out."""

    def command(*arguments: str) -> list[str]:
        return [sys.executable, str(SCHEDULER), str(state), *arguments]

    values: dict[str, Any] = {
        "name": "Simple",
        "template": "job.sh",
        "find": {"command": command("find", "{{job_name}}"), "handle": r"^job (?P<handle>\d+)$"},
        "submit": {
            "command": command("submit", "{{script}}", "{{job_name}}"), "handle": r"^job (?P<handle>\d+)$",
            "away": "cannot reach",
        },
        "poll": {
            "command": command("poll", "{{handle}}"), "pattern": r"^state=(?P<state>\w+)( (?P<exit_code>\d+))?",
            "unknown": "no such job", "every_seconds": 1,
            "states": {"waiting": ["W"], "running": ["R"], "ended": ["E"], "killed": ["K"], "out_of_memory": ["M"]},
        },
        "cancel": {"command": command("signal_job", "{{handle}}", "15")},
        "kill": {"command": command("signal_job", "{{handle}}", "9")},
        "nodes": {
            "command": command("nodes"), "unusable": "down",
            "pattern": r"^(?P<name>\w+) (?P<cpus>\d+) (?P<gpus>\d+) (?P<state>\w+)$",
        },
    }  # fmt: skip
    for name, value in changes.items():
        *tables, key = name.split("__")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        if value is None:
            del table[key]
        else:
            table[key] = value
    return values


def write_settings(folder: Path, values: dict[str, Any], template: str = TEMPLATE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "job.sh").write_text(template)
    path = folder / "exec.toml"
    path.write_text(_toml(values))
    return path


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = [
        f"\n[{prefix}{key}]\n{_toml(value, f'{prefix}{key}.')}"
        for key, value in values.items()
        if isinstance(value, dict)
    ]
    return "\n".join(plain) + "\n" + "".join(tables)


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "name is missing"),
        ({"name": "$(reboot)"}, "name is '$(reboot)'"),
        ({"poll": None}, "poll is missing"),
        ({"poll__unknown": None}, "poll.unknown is missing"),
        ({"sumbit": {"command": ["true"]}}, "sumbit is no setting"),
        ({"submit__comand": ["true"]}, "submit.comand is no setting"),
        ({"submit__command": "sbatch x; rm -rf /"}, "submit.command is 'sbatch x; rm -rf /'"),
        ({"submit__command": []}, "submit.command"),
        ({"submit__command": ["no-such-program"]}, "'no-such-program', which is not found"),
        ({"submit__command": ["./no-such-script"]}, "'./no-such-script', which is not found"),
        ({"submit__command": ["true", "{{scirpt}}"]}, "submit.command has the placeholder {{scirpt}}"),
        ({"find__command": ["true", "{{script}}"]}, "find.command has the placeholder {{script}}"),
        ({"poll__command": ["true", "{{ Handle }}"]}, "poll.command has '{{ Handle }}'"),
        ({"poll__command": ["true", "{{handle|perl}}"]}, "poll.command has '{{handle|perl}}'"),
        ({"submit__handle": "job"}, "no group 'handle'"),
        ({"poll__pattern": "(?P<exit_code>1)"}, "no group 'state'"),
        ({"poll__pattern": "(?P<state>"}, "is no regular expression"),
        ({"submit__timeout_seconds": 0}, "submit.timeout_seconds is '0'"),
        ({"poll__every_seconds": 0.01}, "poll.every_seconds is '0.01'"),
        ({"poll__states__ended": None}, "no state that means ended"),
        ({"poll__states__running": ["R", "E"]}, "'E' as running and as ended"),
        ({"poll__states__paused": ["P"]}, "poll.states.paused"),
        ({"values__partition": "a\n#SBATCH --wrap=reboot"}, "values.partition is"),
        ({"values__run_dir": "/"}, "values.run_dir is the name of a placeholder"),
        ({"values__Partition": "x"}, "values.Partition"),
        ({"values__partition": "x; reboot", "submit__command": ["true", "{{partition}}"]}, "partition is 'x; reboot'"),
        ({"values__partition": "--wrap=x", "submit__command": ["true", "{{partition}}"]}, "reads as an option"),
        ({"template": "../job.sh"}, "leaves the folder"),
        ({"template": "sub/../../job.sh"}, "leaves the folder"),
        ({"template": "/etc/passwd"}, "leaves the folder"),
        ({"template": "link.sh"}, "a link that leaves the folder"),
        ({"template": "folder-link/passwd"}, "a link that leaves the folder"),
        ({"template": "missing.sh"}, "there is no such file"),
        ({"template": "."}, "there is no such file"),
        ({"template": "image.sh"}, "is no UTF-8 text"),
        ({"template": "large.sh"}, "is larger than"),
        ({"template": "odd.sh"}, "template 'odd.sh' has the placeholder {{handle}}"),
        ({"template_text": "x"}, "template_text is no setting"),
        ({"nodes__pattern": "^(?P<name>zz)$"}, "nodes.pattern finds no machine in"),
    ],
)
def test_wrong_settings_are_refused_at_the_start(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "link.sh").symlink_to("/etc/passwd")
    (folder / "folder-link").symlink_to("/etc")
    (folder / "image.sh").write_bytes(b"\xff\xfe\x00")
    (folder / "large.sh").write_text("#" * 300_000)
    (folder / "odd.sh").write_text("echo {{handle}}")
    (tmp_path / "job.sh").write_text("outside")
    state = tmp_path / "state"
    state.mkdir()
    path = write_settings(folder, simple_settings(state, **changes))
    with pytest.raises(InputError) as caught:
        ExecLauncher(tmp_path / "runs", read_exec_settings(path))
    assert words in str(caught.value)


def test_a_settings_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = ")
    for path, words in (
        (tmp_path / "x.toml", "is no TOML"),
        (tmp_path / "y.toml", "cannot be read"),
        (tmp_path, "cannot be"),
    ):
        with pytest.raises(InputError, match=words):
            read_exec_settings(path)


def test_the_service_does_not_start_with_them(tmp_path: Path, state: Path) -> None:
    path = write_settings(tmp_path / "settings", simple_settings(state, template="../job.sh"))
    serve = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    said = subprocess.run(
        [*serve, "--exec-file", str(path)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert said.returncode == 1
    assert f"--exec-file {path}: template is '../job.sh', which leaves the folder of the settings file" in said.stderr


def test_a_template_may_be_a_link_inside_its_folder(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: every file is a link into a folder of the day, beside it."""
    (tmp_path / "state").mkdir()
    path = write_settings(tmp_path / "settings", simple_settings(tmp_path / "state"))
    day = path.parent / "..day"
    day.mkdir()
    (path.parent / "job.sh").rename(day / "job.sh")
    (path.parent / "job.sh").symlink_to("..day/job.sh")
    assert read_exec_settings(path).template_text == TEMPLATE


@pytest.mark.parametrize("scheduler", sorted(SHIPPED))
def test_shipped_settings_are_whole(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the programs: what they say is tested on a real Slurm, and on JobSet's schema."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "kubectl"):
        (programs / program).write_text("#!/bin/sh\nexit 1\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    path, template = write_shipped(scheduler, tmp_path / "out")
    assert read_exec_settings(path).template_text == template.read_text()
    # Its scheduler is away as the service starts: nothing is known of the machines, so nothing is refused or started.
    launcher = ExecLauncher(tmp_path / "runs", read_exec_settings(path))
    assert launcher.nodes() == []
    assert launcher.fit(work(tmp_path, num_processes=64)) == "later"
    with pytest.raises(InputError, match="already"):
        write_shipped(scheduler, tmp_path / "out")


# --- values --------------------------------------------------------------------------------------------------

HOSTILE = st.text(alphabet=st.sampled_from(string.printable + "$`\"'\\é☃\u2028\x7f{}"), max_size=40)


@given(value=HOSTILE)
@settings(deadline=None, max_examples=150)
def test_no_value_ends_the_place_that_it_was_given(value: str) -> None:
    """A quoted value comes out of bash and of a JSON reader as it went in; an unquoted one is plain; others are refused."""
    try:
        quoted = fill("printf '%s' {{x|shell}}", {"x": value}, "here")
    except InputError:
        assert not value.isprintable()
    else:
        assert shlex.split(quoted) == ["printf", "%s", value]
        assert json.loads(fill("{{x|json}}", {"x": value}, "here")) == value
    if re.fullmatch(r"[\w.:/@=,+-]*", value, re.ASCII):
        assert fill("{{x}}", {"x": value}, "here") == value
    else:
        with pytest.raises(InputError):
            fill("{{x}}", {"x": value}, "here")


def test_a_shell_runs_nothing_of_a_value(tmp_path: Path) -> None:
    value = f"'; touch {tmp_path}/pwned; $(touch {tmp_path}/pwned) `touch {tmp_path}/pwned` \"&& touch {tmp_path}/pwned"
    said = subprocess.run(
        ["bash", "-c", fill("printf %s {{x|shell}}", {"x": value}, "here")], capture_output=True, text=True, check=True
    ).stdout
    assert said == value
    assert list(tmp_path.iterdir()) == []


def test_what_looks_like_a_placeholder_is_one() -> None:
    check_placeholders("a {{ x }} ${x} {x} jsonpath={.items[*]}", ["x"], "here")
    for text in ("{{X}}", "{{x.y}}", "{{}}", "{{x", "{{{{x}}"):
        with pytest.raises(InputError, match="two braces begin a placeholder"):
            check_placeholders(text, ["x"], "here")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu1", ["gpu1"]),
        ("gpu[1-3]", ["gpu1", "gpu2", "gpu3"]),
        ("gpu[008-010,12],login", ["gpu008", "gpu009", "gpu010", "gpu12", "login"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("(null)", ["(null)"]),
        ("", []),
        ("n[1-99999][1-99999]", []),  # no cluster is as large
    ],
)
def test_host_names_as_slurm_writes_them(text: str, names: list[str]) -> None:
    """Independent: what `scontrol show hostnames` prints for the same lists."""
    assert list(host_names(text)) == names


# --- a scheduler that misbehaves -----------------------------------------------------------------------------


def work(runs_dir: Path, **changes: Any) -> Work:
    run_dir = runs_dir / new_id("run")
    run_dir.mkdir(parents=True)
    return Work(**({"job_id": new_id("job"), "kind": "growth", "run_dir": run_dir, "device": "cpu"} | changes))


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
        ("state=E", "75", "ended", 75),
        ("state=K 0", None, "ended", None),  # the scheduler's own doing: its 0 is not the engine's
        ("state=K 0", "75", "ended", 75),
        ("state=M", "137", "ended", ExitCode.OUT_OF_MEMORY),
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
        ({"num_processes": 24, "num_nodes": 3, "device": "cuda"}, "but 2 nodes have 8 GPUs"),
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


# --- commands ------------------------------------------------------------------------------------------------


def test_a_command_sees_no_settings_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWTHLAW_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("KEPT", "yes")
    answer = RunningCommand(["env"], folder=tmp_path, timeout_seconds=30).wait()
    assert answer.code == 0
    assert "secret" not in answer.output
    assert "KEPT=yes" in answer.output


def test_a_command_that_cannot_start_says_so(tmp_path: Path) -> None:
    answer = RunningCommand(["/nowhere/sbatch"], folder=tmp_path, timeout_seconds=30).wait()
    assert (answer.code, answer.said) == (None, "/nowhere/sbatch cannot be started: No such file or directory")
