"""The exec launcher on a real Slurm, with the shipped template as it is but for the partition's name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import INSTALL, SlurmCluster, missing

from app.jobs.launchers.bench import NewLauncher
from app.jobs.launchers.conformance import LauncherConformance
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_settings import ExecSettings, read_exec_settings
from app.jobs.launchers.exec_template import write_shipped

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}: {INSTALL}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    running = SlurmCluster(folder=tmp_path_factory.mktemp("slurm"))
    try:
        running.start()
        # The commands of the launcher are children of this process.
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(running.conf)
        yield running
    finally:
        running.stop()
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ExecSettings:
    path, _ = write_shipped("slurm", tmp_path_factory.mktemp("settings"))
    path.write_text(path.read_text().replace('partition = "gpu" ', 'partition = "debug" '))
    return read_exec_settings(path)


class TestExecLauncherOnSlurm(LauncherConformance):
    @pytest.fixture(scope="class")
    def new_launcher(self, runs_dir: Path, cluster: SlurmCluster, settings: ExecSettings) -> NewLauncher:
        return lambda: ExecLauncher(runs_dir, settings)
