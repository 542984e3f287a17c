"""Keys as people make and use them: the command on the data directory, a service beyond loopback, TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from app.cli import cli
from app.client import Growthlaw, NoService, Refused
from fitting.errors import InputError

ROOT = Path(__file__).parents[1]


def growthlaw(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def made(data_dir: Path, name: str, scope: str) -> str:
    created = invoked("keys", "create", name, "--scope", scope, "--data-dir", str(data_dir), "--json")
    assert created.exit_code == 0, created.output
    token: str = json.loads(created.stdout)["token"]
    return token


def test_from_the_first_key_to_its_revocation_on_a_service_for_others(
    service: Any, grow_body: Callable[..., dict[str, Any]], until: Callable[..., Any]
) -> None:
    """Two keys on a service that listens everywhere: each launches, neither touches the other's, all of it is audited."""
    created = growthlaw("keys", "create", "root", "--scope", "admin", "--data-dir", str(service.data_dir))
    assert created.returncode == 0, created.stderr
    (admin,) = created.stdout.split()
    assert admin not in created.stderr
    ours = made(service.data_dir, "ours", "grow")
    service.options = ("--host", "0.0.0.0", "--slots", "1")
    service.api_key = ours
    client = service.start()
    assert client.url.startswith("http://0.0.0.0:")
    port = client.url.rpartition(":")[2]
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(Refused, match="needs a key") as caught, Growthlaw(url, api_key="") as stranger:
        stranger.jobs()
    assert caught.value.status == 401
    job = client.grow(grow_body(controls=[], token_budget=400_000)).arms[0].job
    key_id = job.owner
    assert key_id.startswith("key_")
    with Growthlaw(url, api_key=admin) as boss:
        theirs = boss.create_key("theirs", "grow")
        assert theirs.token not in str(list(boss.keys()))
        with Growthlaw(url, api_key=theirs.token) as other:
            for ask in (other.cancel, other.pause, lambda job_id: other.export(job_id, "file:///x")):
                with pytest.raises(Refused, match="was launched with another key") as caught:
                    ask(job.id)
                assert caught.value.status == 403
            with pytest.raises(Refused, match="takes scope admin"):
                other.audit()
        # The training process has no business with either secret.
        for process in until(service.engine_processes, "it runs"):
            assert not {"GROWTHLAW_API_KEY", "GROWTHLAW_DATABASE_URL"} & process.environ().keys()
        assert boss.cancel(job.id).owner == key_id
        assert job.wait().state == "cancelled"
        deeds = {(deed.actor_name, deed.action, deed.subject) for deed in boss.audit(limit=2)}
        ids = {key.name: key.id for key in boss.keys(limit=2)}
        assert deeds == {
            ("root", "job.cancel", job.id), ("root", "key.create", theirs.id), ("ours", "job.launch", job.id),
            ("local", "key.create", key_id), ("local", "key.create", ids["root"]),
        }  # fmt: skip
    told = growthlaw("audit", "--subject", job.id, "--json", GROWTHLAW_URL=url, GROWTHLAW_API_KEY=admin)
    assert [deed["action"] for deed in json.loads(told.stdout)] == ["job.cancel", "job.launch"]
    # Revoked in the database while the service runs: the very next request is refused.
    assert "is revoked" in invoked("keys", "revoke", "ours", "--data-dir", str(service.data_dir)).output
    with pytest.raises(Refused, match="was revoked"):
        client.job(job.id)
    listed = json.loads(invoked("keys", "list", "--json", "--data-dir", str(service.data_dir)).output)
    assert [(key["name"], key["revoked_at"] is not None) for key in listed] == [
        ("theirs", False),
        ("ours", True),
        ("root", False),
    ]
    service.stop()
    for path in service.data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [token for token in (admin, ours, theirs.token) if token.encode() in content], path


def test_keys_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    made(tmp_path, "ci", "read")
    for arguments, words in (
        (("create", "ci", "--scope", "read"), "which a key in use has"),
        (("create", "Not a name", "--scope", "read"), "names match"),
        (("create", "x", "--scope", "root"), "'read', 'plan', 'grow', 'admin'"),
        (("create", "x"), "--scope"),
        (("revoke", "nobody"), "growthlaw keys list"),
    ):
        failed = invoked("keys", *arguments, "--data-dir", str(tmp_path))
        assert failed.exit_code in (1, 2), arguments
        # What `app.cli.main` prints of an InputError is its text.
        assert words in failed.output + str(failed.exception)
        assert isinstance(failed.exception, (InputError, SystemExit))


def test_tls(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of one's own, trusted through SSL_CERT_FILE; without it nothing is sent."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    refused = invoked("serve", "--port", "0", "--data-dir", str(tmp_path / "x"), "--ssl-certfile", str(certificate))
    assert refused.exit_code == 1
    assert "go together" in refused.output
    refused = growthlaw(
        "serve", "--port", "0", "--data-dir", str(tmp_path / "x"), "--ssl-certfile", str(key), "--ssl-keyfile", str(key)
    )  # fmt: skip
    assert refused.returncode == 1
    assert "cannot be used" in refused.stderr
    service.options = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client = service.start()
    assert client.url.startswith("https://127.0.0.1:")
    assert client.recommend(target_params=7e9, token_budget=2e12).decision == "grow"
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NoService, match="certificate"), Growthlaw(client.url, retry_seconds=0) as distrusting:
        distrusting.health()
    with pytest.raises(httpx.TransportError):
        httpx.get(client.url.replace("https", "http") + "/healthz")
