"""The pages of guidelines: versions with scores and reasons, activating, refitting, a version's evidence, two compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arrivals import COHORT, HELPS, Truth, arrive
from pages_service import Served, serving
from playwright.sync_api import Locator, Page, expect
from stored_cohort import COHORT as KNOWN
from stored_cohort import store_fitted_cohort

Shoot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]
ENDED = ("succeeded", "unchanged", "impossible", "failed")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]) -> Iterator[Served]:
    """Three provisional versions by real refits, each of which predicted what came next; and one version with fitted laws."""
    with serving(tmp_path_factory.mktemp("data")) as running:
        truth = Truth(HELPS)
        for rows in (
            [truth.scratch(48, 5), truth.grown(48, 5, 0.1)],
            [truth.grown(48, 5, 0.1), truth.grown(48, 5, 0.3)],
            [truth.grown(48, 5, 0.3), truth.grown(48, 5, 0.5)],
        ):
            arrive(running.database, rows)
            asked = running.client.refit(COHORT)
            until(lambda asked=asked: running.client.refit_state(asked["id"])["state"] in ENDED, "the refit")
        store_fitted_cohort(running.database)
        yield running


def saying(part: str) -> re.Pattern[str]:
    return re.compile(re.escape(part))


def row_of(page: Page, version: int) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=f"Version {version}", exact=True))


def versions(served: Served, cohort: str = COHORT) -> list[Any]:
    return list(served.client.guidelines(cohort=cohort, limit=100))


def test_versions_say_whether_they_were_promoted_and_why(
    page: Page, served: Served, shoot: Shoot, accessible: Accessible
) -> None:
    page.goto(served.page(f"guidelines.html?cohort={COHORT}"))
    expect(page.get_by_role("heading", name="3 versions")).to_be_visible()
    for version in versions(served):
        row = row_of(page, version.version)
        expect(row).to_contain_text(version.reason)
        assert row.get_by_text("active", exact=True).count() == int(version.is_active)
    own = served.client.guideline(versions(served)[1].id).scores
    assert own["num_deltas"] > 0
    row = row_of(page, 2)
    expect(row).to_contain_text(f"of {own['num_deltas']}")
    chart = page.locator(".js-plotly-plot")
    expect(chart).to_have_attribute("aria-label", saying("beside never growing"))
    page.get_by_label("Shown").select_option("regret_nats")
    expect(chart).to_have_attribute("aria-label", saying("the published rule"))
    assert "measure=regret_nats" in page.url
    accessible(page)
    page.goto(served.page(f"guidelines.html?cohort={COHORT}"))
    expect(chart).to_be_visible()
    shoot(page, "guidelines")


def test_a_version_is_put_back_held_and_released(page: Page, served: Served, accessible: Accessible) -> None:
    newest = versions(served)
    was = next(one for one in newest if one.is_active)
    other = next(one for one in newest if not one.is_active)
    page.goto(served.page(f"guidelines.html?cohort={COHORT}"))
    row = row_of(page, other.version)
    row.get_by_role("button", name="Activate").click()
    accessible(page)
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    assert served.client.guideline(was.id).is_active
    row.get_by_role("button", name="Activate").click()
    page.get_by_role("dialog").get_by_role("button", name="Let it answer").click()
    expect(row.get_by_text("pinned")).to_be_visible()
    now = served.client.guideline(other.id)
    assert (now.is_active, now.is_pinned) == (True, True)
    assert not served.client.guideline(was.id).is_active
    row.get_by_role("button", name="Release").click()
    page.get_by_role("dialog").get_by_role("button", name="Release it").click()
    expect(row.get_by_role("button", name="Hold")).to_be_visible()
    assert not served.client.guideline(other.id).is_pinned
    served.client.activate_guideline(was.id, pinned=False)


def test_a_refit_is_asked_for_and_followed_to_its_end(page: Page, served: Served) -> None:
    page.goto(served.page(f"guidelines.html?cohort={COHORT}"))
    page.get_by_role("button", name="Refit now").click()
    expect(page.locator("#refit-state")).to_contain_text("asked by POST /guidelines/refit")
    expect(page.locator("#refit-state")).to_contain_text("nothing changed since version 3", timeout=60_000)
    expect(page.get_by_role("button", name="Refit now")).to_be_enabled()


def test_one_version_shows_what_it_rests_on(page: Page, served: Served, accessible: Accessible) -> None:
    (version,) = versions(served, KNOWN)
    evidence = served.client.evidence(version.id)
    body = served.client.guideline(version.id).body
    page.goto(served.page(f"guideline.html?id={version.id}"))
    expect(page.get_by_role("heading", name=f"{KNOWN}, version 1")).to_be_visible()
    for sentence in (*body["cannot_identify"], *body["borrowed"], *body["warnings"]):
        expect(page.get_by_label("What the data cannot tell")).to_contain_text(sentence)
    expect(page.locator(".js-plotly-plot").first).to_have_attribute("aria-label", saying("over growth timing"))
    drawn = page.evaluate(
        "document.querySelector('.js-plotly-plot').data.filter(t => t.mode === 'markers').map(t => t.y)"
    )
    assert drawn == [[point["delta_nats"] for point in valley["observed"]] for valley in evidence["valleys"]]
    for law in evidence["laws"]:
        expect(page.get_by_role("row").filter(has_text=law["law"].replace("_", " ")).first).to_be_visible()
    page.get_by_label("Shown").select_option("loss")
    expect(page.locator(".js-plotly-plot").first).to_have_attribute("aria-label", saying("final loss"))
    assert "shown=loss" in page.url
    accessible(page)


def test_what_was_predicted_is_held_against_what_was_seen(page: Page, served: Served) -> None:
    version = versions(served)[1]
    (kind,) = served.client.evidence(version.id)["calibration"]
    page.goto(served.page(f"guideline.html?id={version.id}"))
    label = f"{kind['what']}: {kind['hits']} of {kind['cases']} inside, promised 80%"
    expect(page.get_by_role("img", name=label)).to_be_visible()


def test_two_versions_are_compared(page: Page, served: Served, shoot: Shoot, accessible: Accessible) -> None:
    newest, before, _ = versions(served)
    page.goto(served.page(f"guidelines.html?cohort={COHORT}"))
    page.get_by_role("button", name="Show what changed").click()
    expect(page.get_by_role("heading", name="version 2 against version 3")).to_be_visible()
    assert f"id={before.id}&with={newest.id}" in page.url
    changes = served.client.guideline_diff(before.id, newest.id)["changes"]
    for run_id in changes["runs_added"]:
        expect(page.locator(f"a[href='run.html?id={run_id}']").first).to_be_attached()
    expect(page.get_by_role("heading", name="What both answer")).to_be_visible()
    accessible(page)
    shoot(page, "guideline-compare")


@pytest.mark.long
def test_the_real_grids_guideline_shows_every_held_out_pair(
    page: Page, tmp_path: Path, shoot: Shoot, accessible: Accessible, until: Callable[..., Any]
) -> None:
    """The bundled runs have pairs enough for laws of their own with held-out scores: minutes of fitting."""
    with serving(tmp_path) as running:
        running.client.import_bundled_runs()
        version = until(lambda: versions(running, "grid"), "the refit", timeout_seconds=1800)[0]
        evidence, body = running.client.evidence(version.id), running.client.guideline(version.id).body
        for how in ("target_params", "compute"):
            pairs = [one for one in evidence["predicted"] if one["how"] == how]
            scores = body["held_out"].get(how)
            assert len(pairs) == (scores["num_pairs"] if scores else 0)
            if scores:
                squares = [(one["predicted_nats"] - one["observed_nats"]) ** 2 for one in pairs]
                assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(scores["rmse_delta_nats"])
                assert sum(one["is_inside"] for one in pairs) / len(pairs) == pytest.approx(scores["coverage_80"])
        page.goto(running.page(f"guideline.html?id={version.id}"))
        expect(page.get_by_role("img", name=saying("cases: "))).to_be_visible()
        expect(page.get_by_role("img", name=saying("promised 80%"))).to_be_visible()
        accessible(page)
        shoot(page, "guideline")
