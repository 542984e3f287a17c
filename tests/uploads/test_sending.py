"""Exports: where they may go, that a half one is never taken for whole, and what an attempt behind another one does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.contract import ExitCode, UploadSpec
from app.records import to_dict, write_json_atomically
from app.uploads.sending import MANIFEST_FILE, SENT_FILE, UNFINISHED_FILE, NotStored, SourceChanged, send
from app.uploads.targets import checked_prefix, checked_target
from fitting.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of three files, one of them of several chunks, one in a folder of its own."""
    folder = tmp_path / "runs" / "run_1" / "exports" / "final"
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(9_000_000))
    (folder / "parts" / "empty").touch()
    return folder


@pytest.fixture
def spec(tmp_path: Path, source: Path) -> UploadSpec:
    allowed = tmp_path / "exports"
    allowed.mkdir()
    return UploadSpec(
        run_id="job_1", name="pilot", source_run_id="run_1", source="exports/final", source_dir=str(source),
        url=f"file://{allowed}/models/pilot", allowed_urls=(f"file://{allowed}",),
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path, spec: UploadSpec) -> Path:
    folder = tmp_path / "runs" / "job_1"
    folder.mkdir()
    write_json_atomically(folder / "spec.json", to_dict(spec))
    return folder


def target_of(spec: UploadSpec) -> Path:
    return Path(spec.url.removeprefix("file://"))


def check_whole(spec: UploadSpec, source: Path) -> None:
    """The manifest tells every file, and every file is what the source has."""
    target = target_of(spec)
    manifest = json.loads((target / MANIFEST_FILE).read_text())
    assert (manifest["run_id"], manifest["source"]) == ("run_1", "exports/final")
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    assert [file["path"] for file in manifest["files"]] == names
    for file in manifest["files"]:
        stored = (target / file["path"]).read_bytes()
        assert stored == (source / file["path"]).read_bytes()
        assert (file["num_bytes"], file["sha256"]) == (len(stored), hashlib.sha256(stored).hexdigest())
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert there == {*names, MANIFEST_FILE}


def run_export(run_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.uploads", str(run_dir)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def test_a_folder_arrives_whole_and_says_so(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    files = send(spec, run_dir, lambda done, total: seen.append((done, total)))
    check_whole(spec, source)
    assert [file.path for file in files] == ["config.json", "model.safetensors", "parts/empty"]
    assert seen == sorted(seen)
    assert seen[-1] == (9_000_002, 9_000_002)
    # Ended between its last write and its last word: the same export finds itself done.
    before = {path: path.stat().st_mtime_ns for path in target_of(spec).rglob("*")}
    assert send(spec, run_dir, lambda done, total: None) == files
    assert {path: path.stat().st_mtime_ns for path in target_of(spec).rglob("*")} == before


def test_killed_at_any_file_it_is_never_whole_and_goes_on(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    class Killed(BaseException):
        pass

    target = target_of(spec)
    for stop_at in (1, 2, 5_000_000):

        def die(done: int, total: int, stop_at: int = stop_at) -> None:
            if done >= stop_at:
                raise Killed

        with pytest.raises(Killed):
            send(spec, run_dir, die)
        assert not (target / MANIFEST_FILE).exists()
        assert json.loads((target / UNFINISHED_FILE).read_text())["upload_id"] == "job_1"
    with open(run_dir / SENT_FILE, "a") as file:
        file.write('{"path": "model.safetens')
    written = (target / "config.json").stat().st_mtime_ns
    send(spec, run_dir, lambda done, total: None)
    check_whole(spec, source)
    assert (target / "config.json").stat().st_mtime_ns == written, "what had been sent is not sent again"


def test_what_the_store_lost_is_sent_again(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 8_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(spec, run_dir, stop)
    (target_of(spec) / "config.json").unlink()
    send(spec, run_dir, lambda done, total: None)
    check_whole(spec, source)


@pytest.mark.parametrize("there", ["finished", "unfinished", "torn", "strangers"])
def test_a_folder_of_somebody_else_is_left_alone(spec: UploadSpec, run_dir: Path, there: str) -> None:
    target = target_of(spec)
    other = replace(spec, run_id="job_0")
    if there == "finished":
        send(other, run_dir, lambda done, total: None)
    elif there == "strangers":
        (target / "thesis").mkdir(parents=True)
    else:
        target.mkdir(parents=True)
        (target / UNFINISHED_FILE).write_text('{"upload_id": "job_0"}' if there == "unfinished" else '{"upl')
    before = sorted(target.rglob("*"))
    with pytest.raises(InputError, match="where nothing is") as caught:
        send(spec, run_dir, lambda done, total: None)
    assert caught.value.field == "url"
    assert sorted(target.rglob("*")) == before


def test_a_source_that_changes_or_goes_is_told(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    def grow(done: int, total: int) -> None:
        if done < total:
            with open(source / "model.safetensors", "ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChanged, match="changed"):
        send(spec, run_dir, grow)
    assert not (target_of(spec) / MANIFEST_FILE).exists()
    for path in [*source.rglob("*")]:
        if path.is_file():
            path.unlink()
    done = run_export(run_dir)
    assert done.returncode == ExitCode.BAD_DATA
    assert "holds no files any more" in events(run_dir)[-1]["message"]


def test_a_store_that_loses_bytes_is_found_out(
    spec: UploadSpec, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    truly = LocalFileSystem.info
    monkeypatch.setattr(
        LocalFileSystem, "info", lambda self, path, **options: {**truly(self, path, **options), "size": 1}
    )
    with pytest.raises(NotStored, match="the store says 1"):
        send(spec, run_dir, lambda done, total: None)
    assert not (target_of(spec) / MANIFEST_FILE).exists()


# --- as a process --------------------------------------------------------------------------------------------


def test_its_process_tells_its_story(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    assert run_export(run_dir).returncode == ExitCode.DONE
    check_whole(spec, source)
    story = events(run_dir)
    assert [event["event"] for event in story if event["event"] != "progress"] == ["started", "finished"]
    assert story[-1]["message"] == f"3 files, 9.0 MB at {spec.url}"
    assert [event["seq"] for event in story] == list(range(len(story)))


def test_asked_to_stop_it_stops_and_goes_on_later(spec: UploadSpec, source: Path, run_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(run_dir)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half way\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == ExitCode.PAUSED
    assert not (target_of(spec) / MANIFEST_FILE).exists()
    assert run_export(run_dir).returncode == ExitCode.DONE
    check_whole(spec, source)


# The export's own main, with a store so slow that it waits for the signal half way.
_SLOW = """
import sys, signal, pathlib
from app.uploads import sending, __main__
send = __main__.send
def slowly(spec, run_dir, progress):
    def wait(done, total):
        if done > 4_500_000:
            print("half way", flush=True)
            signal.pause()
        progress(done, total)
    return send(spec, run_dir, wait)
__main__.send = slowly
sys.exit(__main__.main(pathlib.Path(sys.argv[1])))
"""


def test_a_link_that_leads_out_since_it_was_asked_for_is_refused(
    spec: UploadSpec, run_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exports" / "models").symlink_to(tmp_path / "elsewhere")
    assert run_export(run_dir).returncode == ExitCode.BAD_SPEC
    assert "allows exports below" in events(run_dir)[-1]["message"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_store_that_refuses_is_no_bug(spec: UploadSpec, run_dir: Path) -> None:
    target_of(spec).parent.mkdir()
    target_of(spec).write_text("a file where the folder should be")
    done = run_export(run_dir)
    assert done.returncode == ExitCode.UNAVAILABLE, done.stderr
    assert events(run_dir)[-1]["exit_code"] == ExitCode.UNAVAILABLE
    assert "did not take it" in events(run_dir)[-1]["message"]


# --- where it may go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://other/models/x", "allows exports below: s3://bucket/models"),
        ("s3://bucket/models", "allows exports below"),
        ("s3://bucket/models-of-others/x", "allows exports below"),
        ("s3://bucket/models/../secrets", "'..'"),
        ("s3://bucket/models//x", "empty"),
        ("s3://bucket/models/%2e%2e/x", "must be PROTOCOL"),
        ("s3://bucket/models/*", "must be PROTOCOL"),
        ("s3://bucket/models/x?versionId=1", "must be PROTOCOL"),
        ("s3://key:Secret@bucket/models/x", "must be PROTOCOL"),
        ("simplecache::s3://bucket/models/x", "must be PROTOCOL"),
        ("s3://bucket/models/$(reboot)", "must be PROTOCOL"),
        ("s3://bucket/models/x\n", "must be PROTOCOL"),
        ("/etc/passwd", "must be PROTOCOL"),
        ("file:///etc/cron.d", "allows exports below"),
        ("", "must be PROTOCOL"),
    ],
)
def test_a_url_that_leads_elsewhere_is_refused(url: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_target(url, ("s3://bucket/models",))
    assert words in str(caught.value)
    assert caught.value.field == "url"
    assert "Secret" not in str(caught.value)


def test_where_nothing_is_allowed_the_setting_is_named() -> None:
    with pytest.raises(InputError, match=r"none yet.*--export-to URL .GROWTHLAW_EXPORT_URLS"):
        checked_target("file:///tmp/x", ())


def test_links_below_an_allowed_folder_may_not_leave_it(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "out").symlink_to(outside)
    (tmp_path / "link").symlink_to(allowed)
    checked_target(f"file://{allowed}/x/y", (f"file://{allowed}",))
    checked_target(f"file://{tmp_path}/link/x", (f"file://{tmp_path}/link",))
    with pytest.raises(InputError, match="allows exports below"):
        checked_target(f"file://{allowed}/out/x", (f"file://{allowed}",))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://x", "ends with the process"),
        ("gopher://host/x", "does not know"),
        ("webdav://host/x", "pip install webdav4"),
        ("ftp://user:Secret@host/x", "leave credentials"),
        ("s3://", "empty"),
    ],
)
def test_a_setting_that_cannot_work_is_said_at_the_start(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        checked_prefix(url)
    assert "Secret" not in str(caught.value)


# --- over a network ------------------------------------------------------------------------------------------


@pytest.fixture
def ftp_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A real FTP server in a process of its own: port, and the folder that it serves."""
    pytest.importorskip("pyftpdlib", reason="needs pyftpdlib: pip install 'growthlaw[test]'")
    folder = tmp_path / "ftp"
    (folder / "models").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", _FTP, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), folder
    finally:
        process.kill()
        process.communicate()


_FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer
authorizer = DummyAuthorizer()
authorizer.add_user("growthlaw", "Secret-of-the-store", sys.argv[1], perm="elradfmw")
handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
server = FTPServer(("127.0.0.1", 0), handler)
print(server.socket.getsockname()[1], flush=True)
server.serve_forever(handle_exit=False)
"""


@pytest.mark.parametrize("password", ["Secret-of-the-store", "Secret-but-wrong"])
def test_over_ftp_with_the_owners_credentials(
    ftp_server: tuple[int, Path], spec: UploadSpec, source: Path, run_dir: Path, password: str
) -> None:
    port, folder = ftp_server
    root = f"ftp://127.0.0.1:{port}/models"
    write_json_atomically(
        run_dir / "spec.json", to_dict(replace(spec, url=f"{root}/pilot", allowed_urls=(checked_prefix(root),)))
    )
    done = run_export(run_dir, FSSPEC_FTP_USERNAME="growthlaw", FSSPEC_FTP_PASSWORD=password)
    if password == "Secret-but-wrong":
        assert done.returncode == ExitCode.UNAVAILABLE, done.stderr
        assert list((folder / "models").iterdir()) == []
    else:
        assert done.returncode == ExitCode.DONE, done.stderr
        check_whole(replace(spec, url=f"file://{folder}/models/pilot"), source)
    for path in run_dir.iterdir():
        assert b"Secret" not in path.read_bytes()
    assert "Secret" not in done.stdout + done.stderr
