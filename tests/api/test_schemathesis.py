"""schemathesis over the whole API on each database: no 5xx, no answer that the OpenAPI document does not describe.

The service is the real one over real HTTP, but for its two threads: nothing takes a job, so that a random `POST /grow`
or `/corpora` starts no training. Three routes are left out: the event stream of a job that never runs has no end, and
`/healthz` and `/readyz` say 503 without the launcher loop; `test_service.py`, `test_streams.py` and `tests/observe` look at
them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from stored_cohort import store_fitted_cohort

from app.main import create_app
from app.settings import Settings

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "missing_required_header",
)  # fmt: skip
NUM_ROUTES = 30
NOT_HERE = r"/jobs/\{job_id\}/events|/healthz|/readyz"


@pytest.fixture
def url(database_url: str, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # The runs that ship with Growthlaw take seconds to import; test_import.py does. Here they are missing.
    monkeypatch.setattr("app.api.imports.bundled_dir", lambda name: tmp_path / name)
    data = tmp_path / "data"
    (data / "corpora").mkdir(parents=True)
    (data / "corpora" / "demo").symlink_to(tiny_corpus)
    server_url = database_url if database_url.startswith("postgresql") else None
    app = create_app(Settings(data_dir=data, num_slots=1, database_url=server_url))
    store_fitted_cohort(app.state.service.database)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        app.state.service.database.close()


def attack(url: str, seconds: int, folder: Path, *options: str) -> None:
    """Run `st` against the service for about so long.

    Which cases come differs from run to run only as far as the time does: the seed stands.
    """
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--max-time", str(seconds),
            "--checks", ",".join(CHECKS), "--exclude-path-regex", NOT_HERE, "--continue-on-failure", "--no-shrink",
            "--generation-database", "none", "--suppress-health-check", "all", "--request-timeout", "120",
            "--warnings", "off", "--no-color", *options,
        ],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout[-5_000:]
    assert int(found[1]) >= NUM_ROUTES, "hardly anything was asked"


def test_no_5xx_and_no_schema_violation(url: str, tmp_path: Path) -> None:
    attack(url, 40, tmp_path, "--seed", "1")


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_no_5xx_and_no_schema_violation_in_half_an_hour(url: str, tmp_path: Path) -> None:
    attack(url, 1_800, tmp_path)
