"""Where the files that ship with Growthlaw lie: inside the wheel, or in `data/` of a source checkout."""

from __future__ import annotations

from pathlib import Path


def bundled_dir(name: str) -> Path:
    """The folder `data/NAME` of this installation.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    package = Path(__file__).parent
    for candidate in (package / "_data" / name, package.parent / "data" / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"this installation has no bundled data {name!r}; install growthlaw again")
