"""Settings of a service: from the environment (`GROWTHLAW_...`), overridden by the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, field_validator, model_validator
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
        checkpoints_dir: below which a question may name the checkpoint of a base; only its config.json is read.
        exec_file: the commands of the team's own scheduler, which the engine `exec` then hands jobs to.
        ray_address: http(s)://HOST:PORT of a Ray dashboard; the engine `ray` then runs jobs on its workers.
        ray_token, ray_token_file: Ray's token, or the file it is in.
        ray_python: the Python of Ray's workers that has this package.
        stop_seconds: how long requests in flight may take once the service was asked to end.
        require_key: ask for a key on loopback too: behind a proxy that adds no header, and where other users share the machine.
        allowed_hosts: other names that requests may be for, parted by spaces: `growth.example`, `*.example` or `*`.
        cors_origins: whose pages may call the API from a browser, parted by spaces: `https://dash.example`, exactly.
        ssl_certfile, ssl_keyfile: serve TLS with them.
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
    checkpoints_dir: Path | None = None
    exec_file: Path | None = None
    ray_address: str | None = None
    ray_token: SecretStr | None = None
    ray_token_file: Path | None = None
    ray_python: str = Field(default="python", min_length=1)
    stop_seconds: int = Field(default=5, ge=0, le=3600)
    require_key: bool = False
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    lease_seconds: float = Field(default=LEASE_SECONDS, ge=1, le=86_400)
    refit_after_seconds: float = Field(default=2.0, ge=0, le=86_400)

    @field_validator("export_urls", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _names_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host) is None:
                raise ValueError(
                    f"{host!r} is no host; give its name or address alone, as growth.example, *.example or *"
                )
        return tuple(host.lower() for host in value)

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]+)?", origin) is None:
                raise ValueError(
                    f"{origin!r} is no exact origin; give each as browsers send it, in small letters and without a path or "
                    "a star: https://dash.example"
                )
        return value

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("GROWTHLAW_SSL_CERTFILE and GROWTHLAW_SSL_KEYFILE go together; give both or neither")
        return self

    @property
    def needs_key(self) -> bool:
        """Whether every request needs a key: wherever others than this machine's users may reach the service."""
        return self.host not in LOOPBACK_HOSTS or self.require_key or bool(self.allowed_hosts)

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
