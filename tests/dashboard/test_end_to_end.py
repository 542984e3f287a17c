"""The whole circle through the pages on real jobs: plan, launch, live curve, stored run, new version, changed answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import TINY_MODEL, VOCAB_SIZE, RunningService
from job_pages import drawn_losses, stored_losses
from playwright.sync_api import Page, expect

MILLISECONDS_TO_TRAIN = 600_000
TOKEN_BUDGET = 51_200
QUESTION = {"target_shape": TINY_MODEL | {"num_kv_heads": 2, "vocab_size": VOCAB_SIZE}, "token_budget": TOKEN_BUDGET}
PLAN = (
    f"by=shape&layers={TINY_MODEL['num_layers']}&hidden={TINY_MODEL['hidden_size']}&heads={TINY_MODEL['num_heads']}"
    f"&ffn={TINY_MODEL['intermediate_size']}&vocab={VOCAB_SIZE}&context={TINY_MODEL['context_length']}&budget={TOKEN_BUDGET}"
)


def test_a_plan_becomes_jobs_and_their_runs_change_its_answer(
    page: Page, service: RunningService, until: Callable[..., Any]
) -> None:
    client = service.start()
    page.goto(f"{client.url}/ui/index.html?{PLAN}")
    page.get_by_role("button", name="Launch", exact=True).click()
    dialog = page.get_by_role("dialog", name="Launch this plan")
    expect(dialog.get_by_label("Corpus")).to_contain_text("tiny")
    for label, value in {
        "Cohort": "circle", "Growth factor g": "2", "Growth timing d": "20480", "Token budget": str(TOKEN_BUDGET),
        "Peak learning rate": "4e-3", "Sequences a batch": "8", "Warm-up": "5120",
    }.items():  # fmt: skip
        dialog.get_by_label(label).fill(value)
    dialog.get_by_role("button", name="Start jobs").click()
    done = page.get_by_role("dialog", name="2 jobs are queued")
    expect(done).to_be_visible()
    grown = next(job for job in client.jobs() if job.role == "grown")

    before = client.recommend(**QUESTION, cohort="circle")
    assert before.guideline["id"].startswith("published:"), "nothing of the cohort is known yet"
    done.get_by_role("link", name=grown.name).click()
    until(lambda: len(drawn_losses(page).get("training loss", [])) > 2, "the curve is live", timeout_seconds=600)
    assert client.job(grown.id).state in ("running", "succeeded")
    expect(page.locator("#state")).to_have_text("succeeded", timeout=MILLISECONDS_TO_TRAIN)
    run = client.run(grown.run_id)
    assert (run.status, run.is_final, run.growth_factor) == ("finished", True, 2.0)
    until(lambda: drawn_losses(page) == stored_losses(client, run.run_id), "the page holds the stored run")
    expect(page.locator("#tiles")).to_contain_text(f"{run.final_loss:.4f} nats")

    # The run stands among the others, with its loss.
    page.goto(f"{client.url}/ui/runs.html?cohort=circle")
    expect(page.get_by_role("row").filter(has_text=run.name).filter(has_text="\u00d72")).to_contain_text(
        f"{run.final_loss:.4f}"
    )

    page.goto(f"{client.url}/ui/index.html?{PLAN}&cohort=circle")
    expect(page.locator("#sentence")).to_be_visible()
    told_before = page.locator("#answer").inner_text()
    for job in client.jobs(cohort="circle"):
        assert job.wait(timeout_seconds=600).state == "succeeded"
    (version,) = until(lambda: client.guidelines(cohort="circle").data, "the refit", timeout_seconds=300)
    assert (version.version, version.is_active, version.num_runs) == (1, True, 2)
    after = client.recommend(**QUESTION, cohort="circle")
    assert after.guideline["id"] == version.id
    assert after.expected != before.expected, "the answer is another"

    page.reload()
    expect(page.locator("main")).to_contain_text(after.guideline["name"])
    assert page.locator("#answer").inner_text() != told_before
    page.goto(f"{client.url}/ui/guidelines.html?cohort=circle")
    expect(page.get_by_role("row").filter(has_text=version.reason)).to_contain_text("active")
