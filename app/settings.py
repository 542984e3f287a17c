"""Settings of a service: from the environment (`GROWTHLAW_...`), overridden by the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.store.database import sqlite_url
from app.store.jobs import LEASE_SECONDS

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """What a service needs to know.

    Attributes:
        num_slots: how many jobs run side by side on this machine; one a core by default.
        database_url: of a PostgreSQL; None is SQLite under `data_dir`.
        shared_runs_dir: where run directories lie, if not under `data_dir`. Services that share a database and this
            folder take each other's jobs over.
        export_urls: below which runs may be exported, parted by spaces; nowhere by default.
        exec_file: the commands of the team's own scheduler, which the engine `exec` then hands jobs to.
        ray_address: http(s)://HOST:PORT of a Ray dashboard; the engine `ray` then runs jobs on its workers.
        ray_token, ray_token_file: Ray's token, or the file it is in.
        ray_python: the Python of Ray's workers that has this package.
        lease_seconds: how long a service may be silent before another takes its jobs over.
        refit_after_seconds: how long a refit waits for further runs to end; ten times that at most.
    """

    model_config = SettingsConfigDict(env_prefix="GROWTHLAW_", extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Path("growthlaw-data")
    host: str = DEFAULT_HOST
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    num_slots: int = Field(default_factory=_usable_cores, ge=1)
    database_url: SecretStr | None = None
    shared_runs_dir: Path | None = None
    export_urls: Annotated[tuple[str, ...], NoDecode] = ()
    exec_file: Path | None = None
    ray_address: str | None = None
    ray_token: SecretStr | None = None
    ray_token_file: Path | None = None
    ray_python: str = Field(default="python", min_length=1)
    lease_seconds: float = Field(default=LEASE_SECONDS, ge=1, le=86_400)
    refit_after_seconds: float = Field(default=2.0, ge=0, le=86_400)

    @field_validator("export_urls", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @property
    def allowed_export_urls(self) -> tuple[str, ...]:
        """Checked, without slashes at their ends.

        Raises:
            InputError: one is no plain URL, or nothing can be written there.
        """
        from app.uploads.targets import checked_prefix  # the command line reads settings too, and needs no fsspec

        return tuple(checked_prefix(url) for url in self.export_urls)

    def store_url(self) -> str:
        """The database's URL, its password with it: for opening it and nothing else."""
        return self.database_url.get_secret_value() if self.database_url else sqlite_url(self.data_dir)

    @property
    def runs_dir(self) -> Path:
        return self.shared_runs_dir or self.data_dir / "runs"

    @property
    def corpora_dir(self) -> Path:
        return self.data_dir / "corpora"
