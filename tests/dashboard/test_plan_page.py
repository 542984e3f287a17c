"""The front page on a real service with this project's own runs: its numbers are the API's, its link is its state."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningService
from grid_service import QUERY, QUESTION, start_with_grid
from playwright.sync_api import Error, Page, expect

from app.client import Growthlaw


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, new_service: Callable[[Path], RunningService]
) -> Iterator[Growthlaw]:
    running = new_service(tmp_path_factory.mktemp("plan") / "data")
    try:
        yield start_with_grid(running)
    finally:
        running.stop()
        for process in running.engine_processes():
            process.kill()


def opened(page: Page, client: Growthlaw, query: str) -> Page:
    expect.set_options(timeout=30_000)  # a machine that is busy with other tests answers late
    page.goto(f"{client.url}/ui/index.html?{query}")
    expect(page.locator("#sentence")).to_be_visible()
    return page


def rows_of(page: Page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("#one-pager tbody tr").all()]


def test_the_answer_leads_with_odds_and_stakes_and_the_numbers_are_the_apis(
    page: Page, client: Growthlaw, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    answer = client.recommend(**QUESTION)
    opened(page, client, QUERY)
    sentence = page.locator("#sentence").inner_text()
    ways = [scores for scores in answer.guideline["held_out"].values() if isinstance(scores, dict)]
    scores = max(ways, key=lambda one: one["sign_cases"])
    # A question that is itself mistaken comes before all odds.
    (oversized,) = [text for text in answer["warnings"] if text.startswith("The target is over-sized")]
    odds = f"In {scores['sign_hits']} of {scores['sign_cases']} held-out comparisons the sign was right"
    assert sentence.startswith(f"{oversized} {odds}")
    assert page.locator("#answer").inner_text().count(oversized) == 1
    # Every draw says that growing beats scratch here: what may be lost is against all ways of spending the budget.
    assert answer["stakes"]["regret_if_wrong"] is None
    worst = next(arm for arm in answer["arms"] if arm["arm"] == "grown")["worst_regret"]
    assert f"If this plan is wrong you lose at most {worst['gpu_hours']:.2g}" in sentence
    assert answer.expected.chance_growth_helps is not None
    assert "for your plan growing ends lower than scratch in " in sentence
    four = {arm["arm"]: arm for arm in answer["arms"]}
    rows = rows_of(page)
    for (name, arm), row in zip(four.items(), rows, strict=True):
        before = 0.75 if name.startswith("grown") else 0.0
        hours = arm["gpu_hours"] + before
        assert float(row[1]) == pytest.approx(hours, rel=5e-3)
        assert float(row[2].removeprefix("$")) == pytest.approx(3 * hours, rel=5e-3)
        assert float(row[3]) == pytest.approx(hours / 2 / 24, rel=5e-3)
        assert [float(cell) for cell in row[4:7]] == pytest.approx(list(arm["loss_nats"].values()), abs=6e-4)
        assert row[8].startswith(f"{arm['worst_regret']['nats']:.3f}")
        assert "2026-12-01: end" in row[9]
    chance = answer.expected.chance_growth_helps
    assert rows[2][7] == (">99%" if chance > 0.99 else f"{chance:.0%}")
    assert "pilot read" in rows[2][9]
    assert "pilot read" not in rows[0][9]
    # Looks after growth are known for the accounting that was asked, and for no other.
    assert rows[2][9].count("stop above") == len(answer["decision_points"]) > 0
    assert "stop above" not in rows[3][9]
    assumed = page.locator(".assumptions").inner_text()
    assert answer.guideline["id"] in assumed
    assert "version 1" in assumed
    assert "$3 a GPU-hour" in assumed
    accessible(page)
    shoot(page, "plan")


def test_unsupported_plans_get_no_number_but_the_cheapest_pilot(
    page: Page, client: Growthlaw, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    answer = client.recommend(target_params=7e11, token_budget=2e13)
    assert answer.support.grade == "unsupported"
    opened(page, client, "params=700B&budget=20T")
    expect(page.get_by_role("heading", name="We cannot tell you.")).to_be_visible()
    pilot = page.get_by_role("group", name="The cheapest pilot that would help")
    expect(pilot).to_contain_text(f"{answer['pilot']['num_runs']} runs at equal FLOPs of a 140B target on 4T tokens")
    told = page.locator("#answer").inner_text()
    assert "speedup" not in told.lower()
    assert "held-out comparisons" not in told
    expect(page.get_by_text("recommended", exact=True)).to_have_count(0)
    assert all(row[4:7] == ["not given"] * 3 for row in rows_of(page))
    accessible(page)
    shoot(page, "plan-unsupported")


def test_the_published_rule_answers_without_a_cohort_and_says_what_it_cannot_give(
    page: Page, client: Growthlaw
) -> None:
    opened(page, client, "")
    answer = client.recommend(target_params=3e9, token_budget=6e10)
    assert answer.decision == "grow"
    expect(page.get_by_role("heading", level=2).first).to_have_text(
        re.compile(
            rf"Grow: train a base of 750M parameters for .* tokens, then grow it \u00d7{answer.growth_factor:g}\."
        )
    )
    expect(page.locator("#sentence")).to_contain_text("No comparison was held out to test this guideline")
    assert rows_of(page)[2][7] == "not given"


def test_with_a_base_already_paid_that_arm_is_the_one_recommended(page: Page, client: Growthlaw) -> None:
    opened(page, client, f"{QUERY}&base_params=55584&base_tokens=300k")
    recommended = page.locator("#one-pager tbody tr.chosen")
    expect(recommended).to_have_count(1)
    expect(recommended).to_contain_text("base already paid (sunk)")


def test_a_plan_is_a_link(page: Page, client: Growthlaw) -> None:
    opened(page, client, "")
    page.get_by_label("Non-embedding parameters").fill("1B")
    page.get_by_role("slider", name="Budget").fill("10.3")
    page.get_by_text("Hardware, price and dates").click()
    page.get_by_label("Price of a GPU-hour").fill("2.5")
    expect(page.locator("#one-pager tbody tr").first.locator("td").nth(2)).to_contain_text("$")
    assert "params=1B" in page.url
    assert "budget=20B" in page.url
    assert "price=2.5" in page.url
    link, told = page.url, page.locator("#answer .headline").inner_text()
    rows = rows_of(page)
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#answer .headline")).to_have_text(told)
    expect(page.get_by_label("Non-embedding parameters")).to_have_value("1B")
    assert rows_of(page) == rows
    # An emptied field stays empty, and what is no amount is told instead of counting as nothing.
    page.get_by_label("GPUs (K)").fill("")
    page.get_by_label("Price of a GPU-hour").fill("cheap")
    expect(page.locator("#w-price")).to_contain_text("no amount")
    page.reload()
    expect(page.locator("#w-price")).to_contain_text("no amount")
    expect(page.get_by_label("GPUs (K)")).to_have_value("")
    assert next(row[2:4] for row in rows_of(page)) == ["\u2013", "\u2013"]


def test_what_cannot_be_read_is_told_at_its_field_and_no_answer_is_left_standing(page: Page, client: Growthlaw) -> None:
    opened(page, client, "")
    page.get_by_label("Amount").fill("lots")
    expect(page.get_by_text("Give the budget as a number")).to_be_visible()
    expect(page.get_by_label("Amount")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Launch")).to_have_count(0)
    page.get_by_label("Amount").fill("60B")
    expect(page.get_by_role("button", name="Launch")).to_be_visible()


def test_a_launch_shows_each_error_at_its_field_and_then_starts_real_jobs(
    page: Page,
    client: Growthlaw,
    shoot: Callable[..., None],
    accessible: Callable[[Page], None],
    expected_errors: list[str],
) -> None:
    expected_errors.append("422")
    # A corpus of 512 tokens is another recipe than the grid's: its runs need a cohort of their own.
    opened(page, client, QUERY.replace("vocab=1024", "vocab=512").replace("budget=2M", "budget=500k"))
    page.get_by_role("button", name="Launch", exact=True).click()
    dialog = page.get_by_role("dialog", name="Launch this plan")
    expect(dialog.get_by_label("Corpus")).to_contain_text("tiny")
    accessible(page)
    shoot(page, "plan-launch")
    dialog.get_by_label("Cohort").fill("launched")
    for label, value in (
        ("Growth factor g", "3"),
        ("Token budget", "60k"),
        ("Growth timing d", "20480"),
        ("Warm-up", "5120"),
    ):
        dialog.get_by_label(label).fill(value)
    dialog.get_by_label("Peak learning rate").fill("fast")
    dialog.get_by_role("button", name="Start jobs").click()
    expect(dialog.locator("#lw-peak_lr")).to_contain_text("valid number")
    expect(dialog.get_by_label("Peak learning rate")).to_be_focused()
    dialog.get_by_label("Peak learning rate").fill("4e-3")
    dialog.get_by_role("button", name="Start jobs").click()
    expect(dialog.locator("#lw-growth_factor")).to_contain_text("must be a whole number of base layers")
    expect(dialog.get_by_label("Growth factor g")).to_be_focused()
    assert [job.role for job in client.jobs()] == []
    dialog.get_by_label("Growth factor g").fill("4")
    dialog.get_by_role("button", name="Start jobs").click()
    done = page.get_by_role("dialog", name="2 jobs are queued")
    expect(done).to_be_visible()
    jobs = {job.role: job for job in client.jobs()}
    assert set(jobs) == {"grown", "scratch"}
    for job in jobs.values():
        expect(done.get_by_role("link", name=job.name)).to_have_attribute("href", f"job.html?id={job.id}")
        assert job.recommendation_id is not None
        job.cancel()


def test_the_one_pager_prints_on_one_page_and_exports_its_rows(page: Page, client: Growthlaw, tmp_path: Path) -> None:
    opened(page, client, QUERY)
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page[^s]", pdf)) == 1
    if os.environ.get("GROWTHLAW_SHOTS"):
        page.emulate_media(media="print")
        page.screenshot(path=Path(__file__).parent / "shots" / "plan-onepager.png", full_page=True)
        page.emulate_media(media="screen")
    with page.expect_download() as found:
        page.get_by_role("button", name="Export CSV").click()
    file = tmp_path / found.value.suggested_filename
    found.value.save_as(file)
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    answer = client.recommend(**QUESTION)
    assert [row["plan"] for row in rows] == [arm["arm"] for arm in answer["arms"]]
    for row, arm in zip(rows, answer["arms"], strict=True):
        assert float(row["final_loss_p50_nats"]) == arm["loss_nats"]["p50"]
        assert float(row["worst_regret_nats"]) == arm["worst_regret"]["nats"]
        assert row["guideline_id"] == answer.guideline["id"]
        assert row["answered_on"]
    assert float(rows[2]["of_which_pilot_and_retuning_gpu_hours"]) == 0.75


def test_copy_plan_gives_the_question_that_the_page_asked(
    page: Page, client: Growthlaw, shoot: Callable[..., None], tmp_path: Path
) -> None:
    opened(page, client, QUERY)
    page.get_by_role("button", name="Copy plan").click()
    dialog = page.get_by_role("dialog", name="Copy plan")
    curl = dialog.get_by_label("curl", exact=True).inner_text()
    body = json.loads(re.search(r"-d '(.*)'$", curl, re.S)[1])  # type: ignore[index]
    assert _numbers(body) == _numbers(QUESTION)
    assert client.recommend(**body).decision == client.recommend(**QUESTION).decision
    expect(dialog.get_by_label("Python", exact=True)).to_contain_text("Growthlaw(")
    shoot(page, "plan-copy")
    # The command line, run as it stands.
    command = dialog.get_by_label("Command line", exact=True).inner_text()
    own = f"{sys.executable} -m app.cli recommend --json"
    ran = subprocess.run(
        ["bash", "-c", command.replace("growthlaw recommend", own)], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told, answer = json.loads(ran.stdout), client.recommend(**QUESTION)
    assert told["flops"] == answer["flops"]
    assert (told["decision"], told["growth_timing_tokens"]) == (answer.decision, answer.growth_timing_tokens)


def _numbers(value: dict[str, Any]) -> dict[str, Any]:
    return {name: _numbers(one) if isinstance(one, dict) else one for name, one in value.items()}


def test_the_landscape_draws_the_surface_the_runs_and_the_rules_and_follows_the_slider(
    page: Page, client: Growthlaw, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    opened(page, client, QUERY)
    page.get_by_role("button", name="Show the landscape").click()
    expect(page.locator(".over-tokens .main-svg").first).to_be_visible()
    assert "landscape=1" in page.url
    traces = {trace["name"]: trace for trace in page.evaluate("document.querySelector('.map > .chart').data")}
    surface = client.surface(
        num_target_layers=8, hidden_size=48, num_heads=3, intermediate_size=128, vocab_size=1024, context_length=128,
        token_budget=2e6, cohort="grid", growth_factors=[8 / layers for layers in range(1, 8)],
    )  # fmt: skip
    drawn = [value for row in traces["expected loss"]["z"] for value in row if value is not None]
    lowest = min(min(row["loss_nats"]) for row in surface["rows"])
    assert min(drawn) == pytest.approx(lowest, abs=1e-3)
    own = [run for run in client.runs(cohort="grid", limit=1000) if run.growth_factor > 1]
    shown = traces["own runs of this target (any budget)"]["x"]
    assert set(shown) <= {run.growth_timing_tokens for run in own}
    assert len(shown) >= 12
    assert "A constant fraction of the compute" in traces["published rules"]["text"]
    answer = client.recommend(**QUESTION)
    assert traces["this plan"]["x"] == [answer.growth_timing_tokens]
    # Another budget: other surfaces, drawn where the old ones stood.
    before = page.locator(".map > .chart").bounding_box()
    page.get_by_label("Amount").fill("3M")
    page.wait_for_function(
        "old => document.querySelector('.map > .chart').data[0].z[0][0] !== old", arg=traces["expected loss"]["z"][0][0]
    )
    after = page.locator(".map > .chart").bounding_box()
    assert before is not None
    assert after is not None
    assert (after["width"], after["height"]) == (before["width"], before["height"])
    accessible(page)
    shoot(page, "plan-landscape")


def test_without_a_law_the_landscape_says_why_there_is_none(page: Page, client: Growthlaw) -> None:
    opened(page, client, "landscape=1")
    expect(page.get_by_role("heading", name="No landscape here")).to_be_visible()


def test_saved_plans_are_kept_and_compared_side_by_side_by_link(
    page: Page, client: Growthlaw, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    opened(page, client, QUERY)
    boxes = page.locator("#saved").get_by_role("checkbox")
    before = len(client.recommendations().data)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(boxes).to_have_count(before + 1)
    page.get_by_label("Amount").fill("1M")
    expect(page.locator(".assumptions")).to_contain_text("(1M tokens from scratch)")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(boxes).to_have_count(before + 2)
    for place in range(2):
        boxes.nth(place).check()
    table = page.get_by_role("region", name="Comparison of saved plans")
    expect(table.get_by_role("columnheader")).to_have_count(2)
    kept = [client.recommendation(one.id) for one in client.recommendations().data[:2]]
    link = page.url
    assert "compare=" in link
    page.goto("about:blank")
    page.goto(link)
    expect(table.get_by_role("columnheader")).to_have_count(2)
    told = table.inner_text()
    for plan in kept:
        assert plan.guideline_id in told
        assert f"{plan.answer['expected']['delta_nats']:+.4f}".replace("-", "\u2212") in told
    accessible(page)
    shoot(page, "plan-compare")


def test_an_answer_to_an_older_question_is_dropped(page: Page, client: Growthlaw) -> None:
    """The first answer is held back until the second one stands; then it may come, and changes nothing."""
    opened(page, client, "")
    held: list[Any] = []

    def hold(route: Any) -> None:
        if not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/recommend", hold)
    params = page.get_by_label("Non-embedding parameters")
    params.fill("1B")
    page.wait_for_timeout(200)  # longer than the page waits for the next movement of a slider
    params.fill("2B")
    expect(page.locator(".assumptions")).to_contain_text("Target of 2B parameters")
    assert len(held) == 1
    with contextlib.suppress(Error):  # the page has given this request up, so there may be nobody to answer
        held[0].continue_()
    page.wait_for_load_state("networkidle")
    expect(page.locator(".assumptions")).to_contain_text("Target of 2B parameters")
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")


def test_a_dropped_config_is_the_target(page: Page, client: Growthlaw, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 48, "num_attention_heads": 3,
        "num_key_value_heads": 3, "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": 128,
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config, indent=2))
    opened(page, client, "budget=2M&cohort=grid&landscape=1&peak=0.1")
    page.get_by_label("config.json", exact=True).check()
    page.locator("#f-file").set_input_files(file)
    answer = client.recommend(**QUESTION)
    expect(page.locator(".assumptions")).to_contain_text(answer.guideline["id"])
    expect(page.locator(".over-tokens .main-svg").first).to_be_visible()
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator(".assumptions")).to_contain_text(answer.guideline["id"])
    assert json.loads(page.get_by_label("transformers config.json").input_value()) == config


def test_a_service_that_is_gone_is_told_and_asked_again(
    page: Page, client: Growthlaw, expected_errors: list[str]
) -> None:
    expected_errors += ["ERR_FAILED", "Failed to load"]
    opened(page, client, "")
    page.route("**/recommend", lambda route: route.abort())
    page.get_by_label("Amount").fill("50B")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#sentence")).to_be_visible()
