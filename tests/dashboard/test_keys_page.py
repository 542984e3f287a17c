"""The key of a service that needs one: asked for once, checked, kept, forgotten; and what a key may not do is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from conftest import RunningService
from playwright.sync_api import Page, expect
from stored_cohort import COHORT, store_fitted_cohort

from app.cli import cli
from app.store.database import Database, sqlite_url


@pytest.fixture
def guarded(service: RunningService) -> RunningService:
    """A service that asks for a key on loopback too."""
    made = CliRunner().invoke(cli, ["keys", "create", "owner", "--scope", "admin", "--data-dir", str(service.data_dir)])
    assert made.exit_code == 0, made.output
    service.api_key = re.search(r"glk_\S+", made.output).group()  # type: ignore[union-attr]
    service.options = ("--require-key", "--slots", "1")
    return service


def test_a_key_is_asked_for_once_and_kept_until_forgotten(
    page: Page, guarded: RunningService, grow_body: Callable[..., dict[str, Any]], shoot: Callable[..., None],
    accessible: Callable[[Page], None], expected_errors: list[str],
) -> None:  # fmt: skip
    expected_errors += ["401", "403"]  # what Chromium logs of a refusal
    client = guarded.start()
    reader = client.create_key("reader", "read")
    job = client.grow(grow_body(token_budget=20_480_000, controls=[])).arms[0].job

    page.goto(f"{client.url}/ui/job.html?id={job.id}")
    dialog = page.get_by_role("dialog", name="This service needs a key")
    expect(dialog).to_contain_text("This service needs a key; send it as")
    accessible(page)
    shoot(page, "key-dialog")
    page.get_by_role("textbox", name="Key").fill("glk_wrong")
    page.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("The key that was sent is none, or was revoked")
    page.get_by_role("textbox", name="Key").fill(reader.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=job.name)).to_be_visible()
    expect(dialog).to_have_count(0)

    page.goto(f"{client.url}/ui/jobs.html")
    expect(page.get_by_role("link", name=job.name)).to_be_visible()
    page.get_by_role("link", name=job.name).click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    told = page.locator("#actions").get_by_role("alert")
    expect(told).to_contain_text("takes scope grow, and key 'reader' has scope read")
    assert client.job(job.id).wish is None

    page.get_by_role("button", name="Forget key").click()
    expect(dialog).to_be_visible()
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_role("alert")).to_contain_text("this service needs a key")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("textbox", name="Key").fill(guarded.api_key)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#state")).to_have_text("cancelled", timeout=240_000)


def test_what_changes_answers_for_everybody_is_refused_to_lower_keys_and_changes_nothing(
    page: Page, guarded: RunningService, expected_errors: list[str]
) -> None:
    expected_errors += ["401", "403"]
    guarded.environment["GROWTHLAW_REFIT_AFTER_SECONDS"] = "86400"
    client = guarded.start()
    database = Database(sqlite_url(guarded.data_dir))
    store_fitted_cohort(database)
    database.close()
    grower = client.create_key("grower", "grow")
    (version,) = client.guidelines(cohort=COHORT).data
    run = client.runs(cohort=COHORT).data[0]

    page.goto(f"{client.url}/ui/guideline.html?id={version.id}")
    page.get_by_role("textbox", name="Key").fill(grower.token)
    page.keyboard.press("Enter")
    refused = page.get_by_role("dialog").get_by_role("alert")
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("button", name="Hold it").click()
    expect(refused).to_contain_text("takes scope admin, and key 'grower' has scope grow")
    page.get_by_role("button", name="Go back").click()

    page.goto(f"{client.url}/ui/run.html?id={quote(run.run_id)}")
    page.get_by_role("button", name="Correct it", exact=True).click()
    page.get_by_label("Status").select_option("stopped")
    page.get_by_label("Why").fill("a try")
    page.get_by_role("button", name="Correct it and refit").click()
    expect(refused).to_contain_text("takes scope admin, and key 'grower' has scope grow")
    page.get_by_role("button", name="Go back").click()
    page.get_by_role("button", name="Remove it", exact=True).click()
    page.get_by_label("Why").fill("a try")
    page.get_by_role("button", name="Remove it for good").click()
    expect(refused).to_contain_text("takes scope admin, and key 'grower' has scope grow")

    assert not client.guideline(version.id).is_pinned
    assert client.run(run.run_id).status == run.status
