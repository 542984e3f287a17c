"""The house's own rules: who may import whom, lint, types, and what the service process loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "app", "fitting", "tests", "data"), ("mypy",), ("lint-imports", "--no-cache")],
    ids=lambda command: command[0],
)
def test_tool_finds_nothing(command: tuple[str, ...]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    found = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def loaded_by(modules: str) -> set[str]:
    """What a fresh interpreter holds after importing `modules`."""
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return set(loaded.stdout.split())


def test_the_service_process_loads_no_torch() -> None:
    loaded = loaded_by(
        "app.main, app.jobs.supervisor, app.guidelines.refitter, app.guidelines.__main__, app.corpus.__main__"
    )
    assert loaded & {"torch", "transformers", "matplotlib", "ray"} == set()


def test_the_service_loads_what_some_requests_need_when_one_comes() -> None:
    """Each of these would keep every start of the service waiting by itself."""
    loaded = loaded_by("app.main")
    assert {"app.main", "scipy", "numpy"} <= loaded
    late = {
        "pandas", "pyarrow", "scipy.optimize", "scipy.stats", "scipy.special", "scipy.linalg", "alembic", "httpx", "fsspec",
        "sqlalchemy.dialects.postgresql", "torch",
    }  # fmt: skip
    assert loaded & late == set()
