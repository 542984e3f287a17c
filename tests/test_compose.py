"""compose.yaml and the Dockerfile, as far as they can be held without a container engine: against each other, the settings."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.scopes import SCOPE_OF_ROUTE
from app.settings import DEFAULT_PORT, Settings
from app.store.database import checked_url

ROOT = Path(__file__).parents[1]
# ${NAME}, ${NAME:-default} and ${NAME:?message}
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}")


def filled(value: Any, variables: dict[str, str]) -> Any:
    """A document as compose fills it in: text by text, after it was parsed."""
    if isinstance(value, dict):
        return {name: filled(one, variables) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def text(found: re.Match[str]) -> str:
        given = variables.get(found["name"], "")
        if not given and found["kind"] == ":?":
            raise LookupError(found["rest"])
        return given or (found["rest"] if found["kind"] == ":-" else "")

    return _VARIABLE.sub(text, value)


def compose(**variables: str) -> Any:
    return filled(yaml.safe_load((ROOT / "compose.yaml").read_text()), variables)


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, its lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_service_gets_settings_that_it_knows_and_a_database_it_can_open() -> None:
    services = compose(POSTGRES_PASSWORD="5ec2e7")["services"]
    given = services["growthlaw"]["environment"]
    fields = {name.removeprefix("GROWTHLAW_").lower(): value for name, value in given.items()}
    assert set(fields) <= set(Settings.model_fields)
    settings = Settings(**fields, host="0.0.0.0")
    assert settings.needs_key
    url, database = checked_url(settings.store_url()), services["database"]["environment"]
    assert (url.host, url.username, url.password, url.database) == (
        "database", database["POSTGRES_USER"], database["POSTGRES_PASSWORD"], database["POSTGRES_DB"],
    )  # fmt: skip
    listed = compose(POSTGRES_PASSWORD="x", GROWTHLAW_ALLOWED_HOSTS="a.example b.example")["services"]["growthlaw"]
    assert Settings(allowed_hosts=listed["environment"]["GROWTHLAW_ALLOWED_HOSTS"]).allowed_hosts == (
        "a.example", "b.example",
    )  # fmt: skip


def test_no_secret_is_written_down_and_none_is_made_up() -> None:
    with pytest.raises(LookupError, match=r"into \.env"):
        compose()
    for ignore in (".gitignore", ".dockerignore"):
        assert ".env" in (ROOT / ignore).read_text().splitlines()
    for service in compose(POSTGRES_PASSWORD="filled-in")["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value == "filled-in"


def test_only_this_machine_reaches_it_unless_the_owner_says_so() -> None:
    services = compose(POSTGRES_PASSWORD="x")["services"]
    assert services["growthlaw"]["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert "ports" not in services["database"]
    opened = compose(POSTGRES_PASSWORD="x", GROWTHLAW_LISTEN="0.0.0.0")["services"]["growthlaw"]
    assert opened["ports"] == [f"0.0.0.0:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert services["growthlaw"]["cap_drop"] == ["ALL"]


def test_what_is_kept_lies_in_volumes_and_what_must_run_first_is_waited_for() -> None:
    whole = compose(POSTGRES_PASSWORD="x")
    mounted = [volume.split(":") for service in whole["services"].values() for volume in service["volumes"]]
    assert {name for name, _ in mounted} == set(whole["volumes"])
    assert ["data", dict(instructions())["VOLUME"]] in mounted
    assert whole["services"]["growthlaw"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    for service in whole["services"].values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


def test_the_image_runs_as_a_user_of_its_own_and_is_made_of_what_is_there() -> None:
    steps = instructions()
    names = [name for name, _ in steps]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert dict(steps)["USER"] not in ("root", "0")
    for name, arguments in steps:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in shlex.split(arguments)[:-1]), arguments
    assert dict(steps)["EXPOSE"] == str(DEFAULT_PORT)
    assert json.loads(dict(steps)["CMD"]) == ["growthlaw", "serve", "--host", "0.0.0.0"]
    health = json.loads(dict(steps)["HEALTHCHECK"].partition("CMD ")[2])
    assert health == compose(POSTGRES_PASSWORD="x")["services"]["growthlaw"]["healthcheck"]["test"][1:]
    (path,) = re.findall(rf"127\.0\.0\.1:{DEFAULT_PORT}(/[a-z]+)", health[-1])
    assert SCOPE_OF_ROUTE.get(f"GET {path}", "open") == "open", "a probe has no key"
