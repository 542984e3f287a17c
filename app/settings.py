"""Settings of a service: from the environment (`GROWTHLAW_...`), overridden by the command line."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.store.database import sqlite_url

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """What a service needs to know. `num_slots` is how many jobs run side by side (one a core by default)."""

    model_config = SettingsConfigDict(env_prefix="GROWTHLAW_", extra="ignore")

    data_dir: Path = Path("growthlaw-data")
    host: str = DEFAULT_HOST
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    num_slots: int = Field(default_factory=_usable_cores, ge=1)

    @property
    def database_url(self) -> str:
        return sqlite_url(self.data_dir)

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    @property
    def corpora_dir(self) -> Path:
        return self.data_dir / "corpora"
