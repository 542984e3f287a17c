"""What to run next, in Chromium over a real service with real runs: asked, read, copied, saved, queued, stopped, refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningService
from planned_cohort import COHORT, store_planned_cohort
from playwright.sync_api import Download, Page, Route, expect

from app.client import Growthlaw

ASKED = {"cohort": COHORT, "flops_budget": 2e14, "max_steps": 4}
STATE = f"cohort={COHORT}&budget=2e14&steps=4"


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, new_service: Callable[[Path], RunningService]
) -> Iterator[Growthlaw]:
    running = new_service(tmp_path_factory.mktemp("next") / "data")
    store_planned_cohort(running.data_dir)
    running.options = ("--slots", "1")
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def plan(client: Growthlaw) -> dict[str, Any]:
    answer: dict[str, Any] = client.plan(**ASKED)
    assert len(answer["steps"]) >= 2
    return answer


def opened(page: Page, client: Growthlaw, state: str) -> None:
    page.goto(f"{client.url}/ui/next.html?{state}")


def sentence(page: Page) -> Any:
    return page.locator(".sentence")


def test_a_link_shows_its_plan(
    page: Page, client: Growthlaw, plan: dict[str, Any], shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    opened(page, client, STATE)
    expect(sentence(page)).to_have_text(plan["sentence"])
    steps = page.locator(".steps > li")
    expect(steps).to_have_count(len(plan["steps"]))
    for place, step in enumerate(plan["steps"]):
        expect(steps.nth(place)).to_contain_text(step["why"])
        expect(steps.nth(place)).to_contain_text(f"{step['change_chance']:.0%} chance to change a decision")
        expect(steps.nth(place)).to_contain_text(f"{step['regret_after_nats']:.4f} nats")
    first, last = f"{plan['regret_now_nats']:.4f} nats", f"{plan['regret_after_nats']:.4f} nats"
    drawn = page.get_by_role("img", name=re.compile(f"falls from {first} to {last} over"))
    expect(drawn).to_be_visible()
    page.get_by_text("Data of this chart").click()
    expect(page.locator("details[open] tbody tr")).to_have_count(len(plan["steps"]) + 1)
    page.get_by_text("Data of this chart").click()
    expect(page.get_by_role("cell", name="16M tokens")).to_be_visible()
    accessible(page)
    shoot(page, "next")


def test_a_question_becomes_a_link(page: Page, client: Growthlaw, plan: dict[str, Any]) -> None:
    opened(page, client, "")
    expect(page.get_by_role("heading", name="Say what the runs may cost")).to_be_visible()
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.locator("#budget-wrong")).to_contain_text("Give a number above 0")
    expect(page.locator("#budget")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Steps at most").fill("4")
    page.get_by_label("All runs may cost").fill("200T")
    page.get_by_label("All runs may cost").press("Enter")
    expect(sentence(page)).to_have_text(plan["sentence"])
    expect(page).to_have_url(re.compile(f"cohort={COHORT}"))
    page.reload()
    expect(page.get_by_label("All runs may cost")).to_have_value("200T")
    expect(sentence(page)).to_have_text(plan["sentence"])


def test_a_budget_in_gpu_hours_is_told_in_gpu_hours(page: Page, client: Growthlaw, plan: dict[str, Any]) -> None:
    """On something as slow as a core: 2e14 FLOPs are ten hours of 1e10 a second at 55.56%."""
    opened(page, client, f"cohort={COHORT}&budget=10&unit=gpuh&peak=1e10&util=55.5555556&steps=4")
    expect(sentence(page)).to_have_text(plan["sentence"])
    hours = float(f"{plan['cost_flops'] / 2e13:.3g}")
    expect(page.locator(".figures")).to_contain_text(f"{hours:g} GPU-hours")
    page.get_by_label("Used, %").fill("140")
    page.get_by_label("Used, %").press("Tab")
    expect(page.locator("#util-wrong")).to_contain_text("between 0 and 100%")


def test_one_decision_is_answered_by_what_a_pilot_is_worth(
    page: Page, client: Growthlaw, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    kept = client.recommend(cohort=COHORT, target_params=402_496, token_budget=2e6, keep=True)
    opened(page, client, f"{STATE}&for=target&target=402496&tokens=2M")
    expect(sentence(page)).to_have_text(re.compile("^No pilot pays: "))
    expect(page.get_by_role("heading", name="What this means")).to_be_visible()
    expect(page.get_by_role("button", name="Queue these runs")).to_be_disabled()
    accessible(page)
    shoot(page, "next-no-pilot")
    page.get_by_label("The runs are for").select_option("kept")
    page.get_by_label("Kept answer").select_option(kept["id"])
    expect(sentence(page)).to_have_text(re.compile("^No pilot pays: "))
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy-body")).to_contain_text(f"--decision {kept['id']}")


def test_what_the_service_refuses_is_told_at_its_field(
    page: Page, client: Growthlaw, expected_errors: list[str], shoot: Callable[..., None]
) -> None:
    expected_errors.append("422")
    opened(page, client, f"cohort={COHORT}&budget=10")
    expect(page.get_by_role("alert")).to_contain_text("pays for no run inside the guideline's reach; give at least")
    expect(page.locator("#budget-wrong")).to_contain_text("give at least")
    shoot(page, "next-refused")


def test_planning_can_be_stopped_and_asked_again(page: Page, client: Growthlaw, plan: dict[str, Any]) -> None:
    held: list[Route] = []
    # The question is held on its way, so that the test and not the machine says how long planning takes.
    page.route("**/plan", lambda route: held.append(route))
    opened(page, client, STATE)
    expect(page.get_by_text(f"Weighing runs for every size of cohort {COHORT}")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("heading", name="Stopped")).to_be_visible()
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.get_by_text("Weighing runs for")).to_be_visible()
    page.unroute("**/plan")
    # Another question lets go of the one that is held.
    page.get_by_label("Steps at most").fill("1")
    page.get_by_label("Steps at most").press("Tab")
    expect(page.locator(".steps > li")).to_have_count(1)
    assert len(held) >= 2


def test_the_copies_ask_the_same(page: Page, client: Growthlaw) -> None:
    opened(page, client, STATE)
    page.get_by_role("button", name="Copy").click()
    shown = page.locator("#copy-body")
    expect(shown).to_contain_text(
        f"growthlaw plan next --cohort {COHORT} --flops-budget 2e14 --max-steps 4 --out plan/"
    )
    expect(shown).to_contain_text(f"growthlaw sweep run plan/ --url {client.url}")
    page.get_by_role("tab", name="curl").click()
    (body,) = re.findall("-d '(.*)'", shown.inner_text())
    assert json.loads(body) == ASKED
    page.get_by_role("tab", name="Python").click()
    (written,) = re.findall(r"client\.plan\(\*\*(.*)\)", shown.inner_text())
    assert json.loads(written) == ASKED
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_specs_are_saved_as_the_command_writes_them(page: Page, client: Growthlaw, plan: dict[str, Any]) -> None:
    jobs = [run["job"] for step in plan["steps"] for run in step["runs"]]
    saved: list[Download] = []
    page.on("download", lambda download: saved.append(download))
    opened(page, client, STATE)
    page.get_by_role("button", name="Download specs").click()
    while len(saved) < len(jobs):
        page.wait_for_event("download", timeout=30_000)
    names = [f"{number:02d}-{job['name']}.json" for number, job in enumerate(jobs, 1)]
    assert sorted(one.suggested_filename for one in saved) == names
    assert {one.suggested_filename: json.loads(one.path().read_text()) for one in saved} == dict(
        zip(names, jobs, strict=True)
    )


def test_the_runs_are_queued_once_each(page: Page, client: Growthlaw, plan: dict[str, Any]) -> None:
    runs = [run for step in plan["steps"] for run in step["runs"]]

    def queued() -> list[Any]:
        return [job for job in client.jobs(limit=100)["data"] if job["id"] != "job_trained_here"]

    try:
        for _ in range(2):
            opened(page, client, STATE)
            page.get_by_role("button", name="Queue these runs").click()
            page.get_by_role("button", name=re.compile("^Queue [0-9]+ run")).click()
            expect(page.get_by_role("link", name="Watch the jobs")).to_have_attribute("href", "jobs.html")
            expect(page.locator(".started a")).to_have_count(len(runs))
        jobs = queued()
        assert sorted(job["name"] for job in jobs) == sorted(run["job"]["name"] for run in runs)
        links = {link.get_attribute("href") for link in page.locator(".started a").all()}
        assert links == {f"job.html?id={job['id']}" for job in jobs}
    finally:
        for job in queued():
            client.cancel(job["id"])


def test_without_runs_it_says_what_to_do(page: Page, service: RunningService) -> None:
    client = service.start()
    opened(page, client, "")
    expect(page.get_by_role("heading", name="No cohort is stored yet")).to_be_visible()
    expect(page.get_by_role("link", name="import run logs")).to_have_attribute("href", "import.html")
