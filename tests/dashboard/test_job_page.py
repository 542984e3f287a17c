"""One job's page: it is watched to its end, asked to pause, go on and stop, and the stream comes back with the service."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conftest import VOCAB_SIZE, RunningService
from grid_service import GUIDELINE
from job_pages import drawn_losses, free_port, open_job, stored_losses
from playwright.sync_api import Page, expect
from stored_guideline import store_guideline

from app.store.database import Database, sqlite_url
from app.store.ids import new_id
from fitting.guideline import Guideline

Body = Callable[..., dict[str, Any]]
Until = Callable[..., Any]
# Longer than a test takes to look at it, on any machine.
LONG = {"token_budget": 5_120_000, "controls": [], "evaluation_every_tokens": 10_240}
MILLISECONDS_TO_TRAIN = 240_000
TOKEN_BUDGET = 8_000_000


def state(page: Page, name: str) -> None:
    expect(page.locator("#state")).to_have_text(name, timeout=MILLISECONDS_TO_TRAIN)


def test_it_is_watched_to_its_end_over_a_killed_service(
    page: Page, service: RunningService, grow_body: Body, until: Until, shoot: Callable[..., None],
    accessible: Callable[[Page], None], expected_errors: list[str],
) -> None:  # fmt: skip
    """kill -9 and a start on the same port in mid-stream: the page says so, and has every point once at the end."""
    service.options = ("--port", str(free_port()))
    client = service.start()
    job = client.grow(grow_body(controls=[])).arms[0].job
    open_job(page, client, job)
    live = page.locator("#live")
    expect(live).to_have_text("live")
    until(lambda: len(drawn_losses(page).get("training loss", [])) > 2, "the first points are drawn")
    expected_errors.append("ERR_")  # what Chromium logs of a connection that is gone
    service.kill()
    expect(live).to_have_text("reconnecting")
    shoot(page, "job-lost")
    service.start()
    expect(live).to_have_text(re.compile("live|ended"))
    state(page, "succeeded")
    expect(live).to_have_text("ended")
    stored = stored_losses(client, job.run_id)
    until(lambda: drawn_losses(page) == stored, "the chart holds every stored point once, in order")
    assert min(len(values) for values in stored.values()) > 5

    run = client.run(job.run_id)
    tiles = page.locator("#tiles")
    expect(tiles).to_contain_text(f"{run.final_loss:.4f} nats")
    expect(tiles).to_contain_text("has no guideline yet")
    expect(tiles).to_contain_text("this device's peak is not known")
    expect(page.locator("#phases [role=img]")).to_have_attribute(
        "aria-label", re.compile("^Base for 20.5k tokens, growth .2")
    )
    story = page.locator("#story")
    for told in ("Queued", "Training began", "Grew", "The service came back", "Succeeded"):
        expect(story).to_contain_text(told)
    events = [event.data for event in client.events(job.id) if event.event == "story"]
    saved = [event for event in events if event["event"] == "checkpoint"]
    rows = sum(
        1 for n, event in enumerate(events) if event["event"] != "checkpoint" or events[n - 1]["event"] != "checkpoint"
    )
    assert len(saved) > 1
    expect(story.locator("li")).to_have_count(rows)
    expect(page.locator("#log")).to_contain_text("final validation loss")
    page.get_by_role("button", name="FLOPs").click()
    assert page.url.endswith("&x=flops")
    page.get_by_text("Data of this chart").click()
    expect(page.locator("#curve tbody tr")).to_have_count(sum(map(len, stored.values())))
    page.get_by_text("Data of this chart").click()
    accessible(page)
    shoot(page, "job-finished")

    page.reload()
    until(lambda: drawn_losses(page) == stored, "a page that is opened later holds the same")
    page.goto(f"{client.url}/ui/job.html?id=job_none")
    expected_errors.append("404")
    expect(page.get_by_role("alert")).to_contain_text("there is no job 'job_none'")
    page.goto(f"{client.url}/ui/job.html")
    expect(page.get_by_role("heading", name="Which job?")).to_be_visible()


def test_it_is_paused_resumed_and_cancelled_by_its_buttons(
    page: Page, service: RunningService, grow_body: Body, until: Until, shoot: Callable[..., None],
    accessible: Callable[[Page], None], expected_errors: list[str],
) -> None:  # fmt: skip
    client = service.start()
    job = client.grow(grow_body(**LONG)).arms[0].job
    open_job(page, client, job)
    button = {
        name: page.get_by_role("button", name=name, exact=True) for name in ("Pause", "Resume", "Retry", "Cancel")
    }
    until(lambda: len(drawn_losses(page).get("training loss", [])) > 2, "the first points are drawn")
    state(page, "running")
    expect(button["Resume"]).to_be_disabled()
    expect(button["Retry"]).to_be_disabled()
    accessible(page)
    shoot(page, "job-running")
    button["Pause"].click()
    state(page, "paused")
    assert client.job(job.id).state == "paused"
    expect(button["Pause"]).to_be_disabled()
    seen = len(drawn_losses(page)["training loss"])

    button["Resume"].click()
    state(page, "running")
    until(lambda: len(drawn_losses(page)["training loss"]) > seen, "it goes on")
    button["Cancel"].click()
    page.get_by_role("button", name="Keep it").click()
    assert client.job(job.id).wish is None
    button["Cancel"].click()
    page.get_by_role("button", name="Cancel the job").click()
    state(page, "cancelled")
    assert client.wait(job.id).state == "cancelled"
    expect(button["Retry"]).to_be_enabled()
    expect(page.locator("#live")).to_have_text("ended")
    until(lambda: drawn_losses(page) == stored_losses(client, job.run_id), "each point once over a pause")

    expected_errors.append("422")
    page.get_by_role("button", name="Export weights").click()
    page.get_by_label("Where to").fill("s3://somewhere/pilot")
    page.get_by_role("dialog").get_by_role("button", name="Export").click()
    expect(page.get_by_role("alert")).to_contain_text("the service's owner allows exports below: none yet")


def test_a_failure_is_told_in_the_services_own_words(
    page: Page, service: RunningService, grow_body: Body, expected_errors: list[str]
) -> None:
    client = service.start()
    corpus = service.data_dir / "corpora" / "tiny"
    whole = corpus.resolve()
    corpus.unlink()
    shutil.copytree(whole, corpus)
    for shard in corpus.rglob("*.bin"):
        shard.write_bytes(shard.read_bytes()[:1000])
    job = client.grow(grow_body(controls=[])).arms[0].job
    open_job(page, client, job)
    state(page, "failed")
    reason = client.job(job.id).reason
    assert "bad data" in reason
    expect(page.locator("#trouble")).to_contain_text(reason)
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.locator("#facts")).to_contain_text("attempt 2", timeout=MILLISECONDS_TO_TRAIN)
    state(page, "failed")
    assert client.job(job.id).num_attempts == 2


def test_a_job_that_follows_an_answer_shows_its_decision_points(
    page: Page, service: RunningService, grow_body: Body, shoot: Callable[..., None]
) -> None:
    """The answer is that of a guideline of the job's own cohort: the grid's laws, as if they had been fitted there."""
    service.options = ("--slots", "1")
    service.environment["GROWTHLAW_REFIT_AFTER_SECONDS"] = "86400"
    client = service.start()
    busy = client.grow(grow_body(**LONG)).arms[0].job
    guideline = replace(Guideline.from_json(GUIDELINE.read_text(encoding="utf-8")), id=new_id("gl"), cohort=busy.cohort)
    database = Database(sqlite_url(service.data_dir))
    store_guideline(database, guideline, busy.cohort)
    database.close()

    shape = {"num_layers": 8, "hidden_size": 48, "num_heads": 3, "intermediate_size": 128, "context_length": 64}
    answer = client.recommend(
        target_shape=shape | {"vocab_size": VOCAB_SIZE}, token_budget=TOKEN_BUDGET, cohort=busy.cohort
    )
    points = answer["decision_points"]
    assert (answer.decision, len(points) > 1) == ("grow", True)
    design = {
        "target_model": shape, "token_budget": TOKEN_BUDGET, "recommendation_id": answer["id"],
        "growth_factor": answer.growth_factor, "controls": [],
    }  # fmt: skip
    timing = round(answer.growth_timing_tokens or 0)
    follows = client.grow(grow_body(**design, growth_timing_tokens=timing, name="follows")).arms[0].job
    differs = client.grow(grow_body(**design, growth_timing_tokens=timing // 2, name="differs")).arms[0].job
    prediction = client.prediction(follows.id)
    assert prediction["final_loss"] is not None, prediction
    open_job(page, client, follows)
    expect(page.locator("#points tbody tr")).to_have_count(len(points))
    expect(page.locator("#points")).to_contain_text(f"{points[0]['expected_loss_nats']:.4f} nats")
    expect(page.locator("#points")).to_contain_text("hold a decay leg's end against them")
    expect(page.locator("#phases .mark")).to_have_count(len(points))
    drawn = page.wait_for_function(
        """() => document.querySelector("#curve > .chart")?.data?.find((one) => one.name.startsWith("decision"))?.y"""
    ).json_value()
    assert drawn == [point["expected_loss_nats"] for point in points]
    expect(page.locator("#tiles")).to_contain_text(f"{prediction['final_loss']['nats']:.4f} nats")
    expect(page.locator("#tiles")).to_contain_text("version 1, fitted before the run")
    shoot(page, "job-decision-points")
    open_job(page, client, differs)
    expect(page.locator("#points")).to_contain_text("the answer's decision points are not this run's")
    for job in (follows, differs, busy):
        client.cancel(job.id)
