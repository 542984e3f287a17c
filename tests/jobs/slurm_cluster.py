"""A real Slurm of this machine, started by tests: munged, slurmctld and slurmd on free ports, all state in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

INSTALL = "apt-get install --no-install-recommends slurm-wlm slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SECONDS_TO_START = 60.0
SECONDS_TO_STOP = 30.0


def missing() -> list[str]:
    """Programs that a cluster needs and that are not installed. Daemons lie in sbin, which a user's PATH may lack."""
    return [program for program in PROGRAMS if find(program) is None]


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class SlurmCluster:
    """A cluster whose machines are all this one, under several names.

    Attributes:
        folder: holds its configuration, state and logs.
        nodes: names of its machines; each has ``num_cpus`` CPUs, more than there may be, and the GPUs of ``gres``, which
            no process of a job is ever given.
    """

    folder: Path
    nodes: Sequence[str] = ("n1",)
    num_cpus: int = 4
    gres: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def start(self) -> None:
        for name in ("state", "log", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._write_conf()
        munge = self.folder / "munge"
        self.start_daemon(
            "munged", "--foreground", "--force", "--num-threads=2", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.until(lambda: (munge / "socket").exists(), "munge listens")
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.until(
            lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * len(self.nodes), "nodes are idle"
        )

    def _write_conf(self) -> None:
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        gres = f" Gres={self.gres}" if self.gres else ""
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={self.num_cpus} "
            f"RealMemory={psutil.virtual_memory().total // 2**20}{gres}"
            for node in self.nodes
        )
        if self.gres:
            kind, name, count = self.gres.split(":")
            # Files in the place of devices: Slurm asks that they are there, and opens none.
            for index in range(int(count)):
                (self.folder / f"gpu{index}").touch()
            (self.folder / "gres.conf").write_text(
                f"Name={kind} Type={name} File={self.folder}/gpu[0-{int(count) - 1}]\n"
            )
        self.conf.write_text(f"""\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MessageTimeout=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{"GresTypes=gpu" if self.gres else ""}
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")

    # --- daemons ---------------------------------------------------------------------------------------------

    def start_daemon(self, program: str, *arguments: str, name: str = "") -> None:
        path = find(program)
        assert path is not None
        with open(self.folder / "log" / f"{name or program}.out", "ab") as log:
            self.processes[name or program] = subprocess.Popen(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_controller(self, *, is_forgetful: bool = False) -> None:
        """Start slurmctld with the state that it left, or without any (`-c`)."""
        self.start_daemon("slurmctld", "-D", *(["-c"] if is_forgetful else []), "-f", str(self.conf))

    def start_node(self, node: str) -> None:
        self.start_daemon("slurmd", "-D", "-N", node, "-f", str(self.conf), name=f"slurmd-{node}")

    def end(self, name: str, signum: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name)
        process.send_signal(signum)
        process.wait(timeout=SECONDS_TO_STOP)

    def stop(self) -> None:
        """End what runs, then every daemon that this object started."""
        if {"slurmctld", "munged"} <= self.processes.keys():
            self.ask("scancel", "--user", getpass.getuser(), is_checked=False)
            self.until(lambda: not self.ask("squeue", "-h", is_checked=False).strip(), "no job is left")
        for name in [*self.processes][::-1]:
            self.end(name)

    # --- asking ----------------------------------------------------------------------------------------------

    def ask(self, *command: str, is_checked: bool = True) -> str:
        asked = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"SLURM_CONF": str(self.conf)}
        )
        assert asked.returncode == 0 or not is_checked, asked.stderr
        return asked.stdout

    def until(self, condition: object, what: str) -> None:
        assert callable(condition)
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                assert process.poll() is None, (name, self.logs())
            try:
                if condition():
                    return
            except AssertionError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited {SECONDS_TO_START:.0f} s until {what}: {self.logs()}")

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2_000:] for path in sorted((self.folder / "log").iterdir()))
