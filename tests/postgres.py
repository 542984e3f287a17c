"""A real PostgreSQL for tests: its own cluster on a free loopback port, stopped, killed and started as they like."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil

INSTALL = "apt-get install postgresql"
SECONDS_TO_START = 60


def postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where PostgreSQL is not installed. Debian keeps it out of the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


@dataclass
class PostgresServer:
    """One cluster; `url(database)` names a database of it with its user and password."""

    programs: Path
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="growthlaw-postgres-")))
    password: str = field(default_factory=lambda: "Secret-" + secrets.token_hex(8))
    port: int = 0

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            for path in (self.folder, password_file):
                os.chown(path, *self._user())
        self._run(
            "initdb", "--pgdata", str(self.data), "--username", "growthlaw", "--pwfile", str(password_file),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        )  # fmt: skip
        # Processes are killed here, machines are not: nothing needs to reach the disk.
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\nfsync = off\n"
                "log_statement = 'none'\n"
            )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://growthlaw:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run(
            "pg_ctl", "start", "--pgdata", str(self.data), "--log", str(self.folder / "log"), "--wait",
            "--timeout", str(SECONDS_TO_START),
        )  # fmt: skip

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: nothing is finished, and the next start recovers from the log."""
        self._run("pg_ctl", "stop", "--pgdata", str(self.data), "--mode", mode, "--wait")

    def kill(self) -> None:
        """SIGKILL for the server and all its processes at once, as if the machine had run out of memory."""
        postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=SECONDS_TO_START)

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        name = "test_" + secrets.token_hex(4)
        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)

    @staticmethod
    def _user() -> tuple[int, int]:
        """Whom the server runs as: it refuses root."""
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return entry.pw_uid, entry.pw_gid
        raise RuntimeError("neither a user 'postgres' nor 'nobody' is there to run PostgreSQL as")

    def _run(self, program: str, *arguments: str) -> None:
        who: dict[str, object] = {}
        if os.geteuid() == 0:
            uid, gid = self._user()
            who = {"user": uid, "group": gid, "extra_groups": []}
        done = subprocess.run(
            [self.programs / program, *arguments], cwd=self.folder, env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            start_new_session=True, **who,  # type: ignore[call-overload]
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout}"
