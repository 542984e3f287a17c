"""What the exec launcher's settings and templates refuse, and what no value in them can do."""

from __future__ import annotations

import json
import os
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simple_settings import TEMPLATE, simple_settings, work, write_settings

from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_command import RunningCommand
from app.jobs.launchers.exec_nodes import host_names
from app.jobs.launchers.exec_settings import read_exec_settings
from app.jobs.launchers.exec_template import SHIPPED, check_placeholders, fill, write_shipped
from fitting.errors import InputError


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


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
        ("a[1-60000],b[1-60000]", []),
        ("n[1-9999999999]", ["n1-9999999999"]),
    ],
)
def test_host_names_as_slurm_writes_them(text: str, names: list[str]) -> None:
    """Independent: what `scontrol show hostnames` prints for the same lists."""
    assert list(host_names(text)) == names


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
