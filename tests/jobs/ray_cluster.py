"""A real Ray cluster on loopback for tests: a head and a worker node, token authentication, nothing left behind.

Every node is one `ray start --block` in a session of its own; only processes that descend from it, or carry the cluster's
folder in their command line, are ever ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from app.jobs.launchers.ray_api import RayApi, RayToken
from app.jobs.launchers.ray_nodes import parse_nodes

HEAD_IP, WORKER_IP = "127.0.0.2", "127.0.0.3"  # Ray replaces 127.0.0.1 by the machine's own address
NUM_CPUS = 2
NUM_GPUS = 4  # Ray counts them, whether they are there or not
Until = Callable[..., Any]


def free_port(ip: str) -> int:
    """A port below those that the system itself gives out, so that none of Ray's processes takes it first."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind((ip, port))
            except OSError:
                continue
            return port


class RayCluster:
    """Two nodes of two CPUs each."""

    def __init__(self, until: Until) -> None:
        self._until = until
        # Sockets lie below it, whose paths may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.token = secrets.token_hex(24)
        self.gcs_port, self.dashboard_port = free_port(HEAD_IP), free_port(HEAD_IP)
        self.address = f"http://{HEAD_IP}:{self.dashboard_port}"
        self.api = RayApi(self.address, RayToken(SecretStr(self.token)))
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.start_head()
        self.start_worker()

    def start_head(self) -> None:
        self._start(
            HEAD_IP, "--head", f"--port={self.gcs_port}", f"--dashboard-host={HEAD_IP}",
            f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port(HEAD_IP)}",
            f"--temp-dir={self.folder}", "--num-gpus=0",
        )  # fmt: skip
        self._until_there(HEAD_IP)

    def start_worker(self) -> None:
        self._start(WORKER_IP, f"--address={HEAD_IP}:{self.gcs_port}", f"--num-gpus={NUM_GPUS}")
        self._until_there(WORKER_IP)

    def _start(self, ip: str, *options: str) -> None:
        environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_DEDUP_LOGS": "0",
            # By default Ray runs its workers at niceness 15, behind whatever else this machine does.
            "RAY_worker_niceness": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # A node that lost its head gives up after this, instead of a minute.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        }
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={ip}", *options,
            f"--num-cpus={NUM_CPUS}", "--object-store-memory=80000000", "--min-worker-port=0",
            "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
        ]  # fmt: skip
        with open(self.folder / f"{ip}.log", "ab") as log:
            self.nodes[ip] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip

    def _until_there(self, ip: str) -> None:
        def there() -> bool:
            assert self.nodes[ip].poll() is None, (self.folder / f"{ip}.log").read_text()[-3_000:]
            try:
                return any(ip in node.name for node in parse_nodes(self.api.nodes()))
            except OSError:
                return False

        self._until(there, f"the Ray node {ip} is there")

    def kill_node(self, ip: str) -> None:
        """SIGKILL of Ray's own processes of a node; what runs in its workers must end by itself."""
        node = self.nodes.pop(ip)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (*psutil.Process(node.pid).children(), psutil.Process(node.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    def stop(self) -> None:
        for ip in list(self.nodes):
            self.kill_node(ip)
        for process in self.processes():
            process.kill()
        self.api.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Whatever is left of the cluster."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if any(str(self.folder) in part for part in process.info["cmdline"] or [])
            or (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == self.token
        ]

    def suspend_head(self) -> Callable[[], None]:
        """Let nobody answer at the dashboard; gives a function that wakes it."""
        dashboards = [
            p for p in psutil.Process(self.nodes[HEAD_IP].pid).children() if "dashboard.py" in str(p.cmdline())
        ]
        for process in dashboards:
            process.send_signal(signal.SIGSTOP)
        return lambda: [process.send_signal(signal.SIGCONT) for process in dashboards]  # type: ignore[func-returns-value]
