"""The pages of runs: what they find is what the API finds, views are links, speedups are told, and runs can be mended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pages_service import Served, serving
from playwright.sync_api import Page, expect

Shoot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]

# Of the bundled grid: a growth, its control, and a decay leg of the growth's trunk.
GROWN, CONTROL, LEG = (
    "run_01m7zekakhwhxjz8y5nyqp6hwe", "run_01m7zck12fqabqm38j66t5wp2k", "run_01m7zkvk9d63bh5vf4d85rmyfw",
)  # fmt: skip
ROWS = 50  # that the page asks for


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled runs; no refit runs beside the tests."""
    with serving(tmp_path_factory.mktemp("data"), refit_after_seconds=3600) as served:
        served.client.import_bundled_runs()
        yield served


def names(page: Page) -> list[str]:
    return page.locator("td.name a").all_inner_texts()


def found(served: Served, **query: Any) -> list[str]:
    """The runs of the page's first rows; how many the grid has by now is nobody's matter."""
    return [run.name for run in served.client.runs(limit=ROWS, **query).data]


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ("", {}),
        ("?search=L8%20b5", {"search": "L8 b5"}),
        ("?g_min=1.5&d_max=100k", {"min_growth_factor": 1.5, "max_growth_timing_tokens": 1e5}),
        ("?N_max=60k&basis=final&source=import", {"max_target_params": 6e4, "is_final": True, "source": "import"}),
        ("?cohort=grid&status=finished", {"cohort": "grid", "status": "finished"}),
    ],
)
def test_a_link_shows_what_the_api_finds(page: Page, grid: Served, link: str, query: dict[str, Any]) -> None:
    page.goto(grid.page(f"runs.html{link}"))
    wanted = found(grid, **query)
    assert wanted
    expect(page.locator("td.name")).to_have_count(len(wanted))
    assert names(page) == wanted


def test_filters_go_into_the_link_and_back(page: Page, grid: Served, accessible: Accessible) -> None:
    page.goto(grid.page("runs.html"))
    page.get_by_label("Search").fill("d22528")
    page.get_by_label("Growth timing d (tokens)").fill("20k")
    page.get_by_label("Source").select_option("import")
    wanted = found(grid, search="d22528")
    assert len(wanted) == 3
    expect(page.locator("td.name")).to_have_count(3)
    expect(page).to_have_url(re.compile(r"search=d22528.*"))
    assert {"d_min=20k", "source=import"} <= set(page.url.split("?")[1].split("&"))
    accessible(page)
    page.goto(page.url)
    expect(page.get_by_label("Growth timing d (tokens)")).to_have_value("20k")
    expect(page.locator("td.name")).to_have_count(3)
    page.get_by_label("Growth timing d (tokens)").fill("some")
    expect(page.get_by_text("a number such as")).to_be_visible()
    page.get_by_role("button", name="Clear all filters").click()
    expect(page.locator("td.name")).to_have_count(len(found(grid)))


def test_nothing_found_and_nothing_there(
    page: Page, grid: Served, tmp_path_factory: pytest.TempPathFactory, accessible: Accessible
) -> None:
    page.goto(grid.page("runs.html?search=nosuchrun"))
    expect(page.get_by_role("heading", name="No run fits")).to_be_visible()
    with serving(tmp_path_factory.mktemp("empty")) as empty:
        page.goto(empty.page("runs.html"))
        expect(page.get_by_role("heading", name="No runs are stored yet")).to_be_visible()
        accessible(page)
        page.goto(empty.page("guidelines.html"))
        expect(page.get_by_role("heading", name="No guidelines yet")).to_be_visible()
        accessible(page)


def test_errors_are_told_and_tried_again(page: Page, grid: Served, expected_errors: list[str]) -> None:
    expected_errors += ["404", "503"]
    page.goto(grid.page("run.html?id=run_none"))
    expect(page.get_by_role("alert")).to_contain_text("there is no run 'run_none'")
    page.route(
        "**/runs?*", lambda route: route.fulfill(status=503, json={"title": "Service Unavailable", "detail": "later"})
    )
    page.goto(grid.page("runs.html"))
    expect(page.get_by_role("alert")).to_contain_text("later")
    page.unroute("**/runs?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("td.name")).to_have_count(len(found(grid)))


def test_curves_are_laid_over_each_other_with_their_speedups(
    page: Page, grid: Served, shoot: Shoot, accessible: Accessible
) -> None:
    chosen: list[str] = []
    for run_id in (GROWN, CONTROL, LEG):
        name = grid.client.run(run_id).name
        page.goto(grid.page(f"runs.html?search={name}&runs={','.join(chosen)}"))
        page.get_by_role("checkbox", name=f"Draw {name}", exact=True).check()
        chosen.append(run_id)
    expect(page.get_by_role("heading", name="Curves of 3 runs")).to_be_visible()
    box = page.locator(".js-plotly-plot")
    expect(box).to_have_attribute("aria-label", "validation_loss on demo/validation of 3 runs over training FLOPs")
    assert page.url.endswith(f"runs={GROWN}%2C{CONTROL}%2C{LEG}")

    answer = grid.client.curve(LEG, against=grid.client.run(LEG).control_id)["final"]
    row = page.get_by_role("row", name=grid.client.run(LEG).name).filter(has_text="read between the final losses")
    expect(row).to_contain_text(f"+{100 * answer['speedup']:.1f}%")
    # The leg shares its first points with the trunk; this one is the trunk's alone.
    point = [one for one in grid.client.curve(GROWN, against=CONTROL)["points"] if one["speedup"] is not None][-1]
    hover(page, point["compute_flops"])
    expect(page.locator(".reading")).to_contain_text(f"speedup +{100 * point['speedup']:.1f}% FLOPs")
    expect(page.locator(".reading")).to_contain_text("mid-schedule")

    page.get_by_label("Over", exact=True).select_option("tokens")
    expect(box).to_have_attribute("aria-label", re.compile("over tokens"))
    page.get_by_label("Metric").select_option("train_loss|demo/train")
    expect(box).to_have_attribute("aria-label", re.compile("train_loss"))
    page.reload()
    expect(box).to_have_attribute("aria-label", "train_loss on demo/train of 3 runs over tokens")
    accessible(page)
    expect(page.get_by_role("checkbox", name=f"Draw {grid.client.run(LEG).name}", exact=True)).to_be_checked()
    page.goto(grid.page(f"runs.html?search=d1332224&runs={GROWN},{CONTROL},{LEG}"))
    expect(page.locator(".reading")).to_contain_text("Point at a curve")
    shoot(page, "runs")


def hover(page: Page, flops: float) -> None:
    """Look at the point of the first curve that stands at these FLOPs, as Plotly tells its listeners."""
    page.locator(".js-plotly-plot").scroll_into_view_if_needed()
    spot = page.evaluate(
        """flops => {
            const plot = document.querySelector(".js-plotly-plot"), { xaxis, yaxis } = plot._fullLayout;
            const trace = plot.data[0], place = trace.x.indexOf(flops), frame = plot.getBoundingClientRect();
            const x = xaxis._offset + xaxis.d2p(trace.x[place]), y = yaxis._offset + yaxis.d2p(trace.y[place]);
            return [frame.left + x, frame.top + y];
        }""",
        flops,
    )
    page.mouse.move(spot[0] + 30, spot[1] + 30)
    page.mouse.move(spot[0], spot[1], steps=5)


def test_one_run_is_shown_with_its_relatives(page: Page, grid: Served, shoot: Shoot, accessible: Accessible) -> None:
    run = grid.client.run(LEG)
    page.goto(grid.page(f"run.html?id={LEG}"))
    expect(page.get_by_role("heading", name=run.name)).to_be_visible()
    control = grid.client.run(run.control_id)
    expect(page.get_by_role("link", name=control.name).first).to_have_attribute("href", f"run.html?id={control.run_id}")
    expect(page.get_by_label("In short")).to_contain_text(f"{run.final_loss:.4f} nats")
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    everything = grid.client.runs(cohort=run.cohort, limit=1000).data
    scratch = [one for one in everything if one.target_params == run.target_params and one.growth_factor == 1]
    expect(page.get_by_text(f"read between the final losses of {len(scratch)} scratch runs")).to_be_visible()
    accessible(page)
    shoot(page, "run")


def test_a_run_is_corrected_and_removed_with_a_reason(page: Page, grid: Served, accessible: Accessible) -> None:
    run = next(one for one in grid.client.runs(limit=1000) if one.name == "h48-l1-lr0.004-s0-b2.5")
    page.goto(grid.page(f"run.html?id={run.run_id}"))
    page.get_by_role("button", name="Correct it", exact=True).click()
    accessible(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Status").select_option("diverged")
    dialog.get_by_role("button", name="Correct it and refit").click()
    assert grid.client.run(run.run_id).status == "finished"  # no reason, no correction
    dialog.get_by_label("Why").fill("a node fed it zeros")
    dialog.get_by_role("button", name="Correct it and refit").click()
    expect(page.get_by_role("cell", name="a node fed it zeros")).to_be_visible()
    corrected = grid.client.run(run.run_id)
    assert corrected.status == "diverged"
    assert corrected.corrections["status"]["was"] == "finished"

    page.get_by_role("button", name="Remove it", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    page.get_by_role("button", name="Remove it", exact=True).click()
    page.get_by_role("dialog").get_by_label("Why").fill("wrong data")
    page.get_by_role("dialog").get_by_role("button", name="Remove it for good").click()
    expect(page.get_by_text(f"{run.name} was removed")).to_be_visible()
    assert run.run_id not in [one.run_id for one in grid.client.runs(limit=1000)]
