"""The pages of workers and of all jobs: one job has the machine's only slot, two wait behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningService, tiny_grow_body
from playwright.sync_api import Page, expect

from app.answers import Growth
from app.client import Growthlaw

Shoot = Callable[..., None]
Accessible = Callable[[Page], None]


@pytest.fixture(scope="module")
def busy(
    tmp_path_factory: pytest.TempPathFactory, new_service: Callable[[Path], RunningService], until: Callable[..., Any]
) -> Iterator[tuple[Growthlaw, Growth]]:
    """A service of one slot, and the growth of which one run has it."""
    service = new_service(tmp_path_factory.mktemp("busy") / "data")
    service.options = ("--slots", "1")
    client = service.start()
    growth = client.grow(tiny_grow_body(token_budget=20_480_000))
    until(lambda: client.job(growth.arms[0].job.id).progress, "the first points")
    yield client, growth
    service.stop()
    for process in service.engine_processes():
        process.kill()


def test_workers_and_the_queue(
    page: Page, busy: tuple[Growthlaw, Growth], shoot: Shoot, accessible: Accessible
) -> None:
    client, growth = busy
    grown, scratch, _ = (arm.job for arm in growth.arms)
    page.goto(f"{client.url}/ui/workers.html")
    (worker,) = client.workers()
    expect(page.get_by_role("heading", name=worker["name"])).to_be_visible()
    expect(page.locator("#summary")).to_have_text("1 node, 1 device, 0 free; 2 jobs wait.")
    slots = page.get_by_role("list", name=f"Devices of {worker['name']}").get_by_role("listitem")
    expect(slots).to_have_count(1)
    expect(slots.get_by_role("link", name=grown.name)).to_have_attribute("href", f"job.html?id={grown.id}")
    expect(page.locator("#content")).to_contain_text(f"torch {worker['versions']['torch']}")
    expect(page.locator("#content")).to_contain_text("heard of")
    queue = page.locator("#queue li")
    expect(queue).to_have_count(2)
    expect(queue.first).to_contain_text(f"{scratch.name} scratch, priority 0")
    expect(queue.first).to_contain_text("next on local: it needs 1 device, 0 of 1 are free")
    expect(queue.last).to_contain_text(f"behind {scratch.name}")
    accessible(page)
    shoot(page, "workers")

    urgent = client.grow(tiny_grow_body(name="urgent", controls=[], priority=7)).arms[0].job
    expect(queue.first).to_contain_text("urgent-grown grown, priority 7")  # the page was not loaded again
    client.cancel(urgent.id)
    expect(queue).to_have_count(2)
    queue.first.get_by_role("link").click()
    expect(page.get_by_role("heading", name=scratch.name)).to_be_visible()
    expect(page.locator("#state")).to_have_text("queued")


def test_jobs_filtered_by_the_url_and_live(
    page: Page, busy: tuple[Growthlaw, Growth], until: Callable[..., Any], shoot: Shoot, accessible: Accessible
) -> None:
    client, growth = busy
    grown, _, base = (arm.job for arm in growth.arms)
    alone = client.grow(tiny_grow_body(name="alone", cohort="other", controls=[])).arms[0].job
    page.goto(f"{client.url}/ui/jobs.html")
    rows = page.locator("#content tbody tr:has(td)")
    expect(rows).to_have_count(client_count(client))
    expect(page.get_by_role("rowheader", name="tiny")).to_contain_text("3 runs of one request, 0 ended")
    row = rows.filter(has=page.get_by_role("link", name=grown.name))
    expect(row).to_contain_text("running")
    expect(row.get_by_role("progressbar")).to_be_visible()
    before = row.get_by_role("progressbar").evaluate("bar => bar.value")
    until(lambda: row.get_by_role("progressbar").evaluate("bar => bar.value") > before, "its bar moves")
    accessible(page)
    shoot(page, "jobs")

    page.get_by_label("Cohort").select_option("other")
    expect(rows).to_have_count(1)
    assert page.url.endswith("?cohort=other")
    page.get_by_label("State").select_option("running")
    expect(page.get_by_role("heading", name="No job is like that")).to_be_visible()
    page.go_back()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("State")).to_have_value("")
    page.get_by_role("link", name=alone.name).focus()
    client.cancel(alone.id)
    expect(rows).to_contain_text("cancelled")  # by itself
    expect(page.get_by_role("link", name=alone.name)).to_be_focused()

    page.goto(f"{client.url}/ui/jobs.html?state=queued&cohort=tiny")
    expect(rows).to_have_count(2)
    expect(rows.get_by_role("link", name=base.name)).to_be_visible()


def client_count(client: Growthlaw) -> int:
    return len(list(client.jobs()))


def test_a_service_without_jobs(page: Page, service: RunningService) -> None:
    client = service.start()
    page.goto(f"{client.url}/ui/jobs.html")
    expect(page.get_by_role("heading", name="No job yet")).to_be_visible()
    page.goto(f"{client.url}/ui/workers.html")
    expect(page.locator("#queue")).to_contain_text("Nothing waits.")
    expect(page.locator("#content li").first).to_contain_text("free")
