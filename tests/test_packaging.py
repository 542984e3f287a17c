"""A wheel, installed away from the sources, holds what the demo's first step needs, and the templates of schedulers."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_in_an_empty_folder_prepares_the_bundled_corpus(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 12e6
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    # The libraries are this environment's own; only the project itself comes from the wheel.
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.check_output([python, "-c", "import app; print(app.__file__)"], cwd=empty, text=True)
    assert str(environment) in where
    prepared = subprocess.run(
        [environment / "bin" / "growthlaw", "corpus", "prepare", "demo", "--json"],
        cwd=empty, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    summary = json.loads(prepared.stdout)
    assert summary["train_tokens"] > 10e6
    assert summary["vocab_size"] == 1024
    assert Path(summary["corpus_dir"]).parent == empty / "growthlaw-data" / "corpora"
    for scheduler in ("slurm", "kubernetes"):
        template = [environment / "bin" / "growthlaw", "workers", "template", scheduler, "--out", scheduler]
        told = subprocess.run(template, cwd=empty, capture_output=True, text=True, check=True).stdout
        assert all((empty / line).stat().st_size > 500 for line in told.split())
