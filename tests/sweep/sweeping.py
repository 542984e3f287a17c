"""The command as users call it, and what the tests of this room share."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from app.client import Growthlaw

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "app.cli", "sweep", *map(str, arguments)]


def growthlaw(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=300
    )


@dataclass(frozen=True)
class Swept:
    """The tiny grid trained and collected, and a service over its data that still runs."""

    data_dir: Path
    runs_dir: Path
    client: Growthlaw
