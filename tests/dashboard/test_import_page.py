"""Import by dropping files: a dry run first, errors at their fields, and then the runs stand in the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from pages_service import Served, serving
from playwright.sync_api import Locator, Page, expect

from app.bundled import bundled_dir

Shoot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]

MAPPING = {
    "cohort": "ours", "corpus": "web", "tokenizer": "bpe-1024", "tokens": "step * 1000", "target_params": 4e5,
    "columns": [{"column": "val_loss", "metric": "validation_loss", "dataset": "web"}],
}  # fmt: skip


def log(losses: list[float], *, first: int = 100) -> str:
    """A CSV as trainers write it: a loss every 100 steps."""
    lines = [f"{first + 100 * place},{loss}" for place, loss in enumerate(losses)]
    return "\n".join(["step,val_loss", *lines]) + "\n"


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("data"), refit_after_seconds=3600) as running:
        yield running


def drop(place: Locator, **files: str) -> None:
    """Drop files as a person does, through a DataTransfer."""
    transfer = place.page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, text] of Object.entries(files)) transfer.items.add(new File([text], name, { type: "text/csv" }));
            return transfer;
        }""",
        {f"{name}.csv": text for name, text in files.items()},
    )
    place.dispatch_event("dragover", {"dataTransfer": transfer})
    place.dispatch_event("drop", {"dataTransfer": transfer})


def test_a_dropped_log_is_shown_first_and_then_stored(
    page: Page, served: Served, shoot: Shoot, accessible: Accessible
) -> None:
    client = served.client
    client.save_mapping("our-trainer", MAPPING)
    page.goto(served.page("import.html"))
    accessible(page)
    page.get_by_label("Saved mapping").select_option("our-trainer")
    expect(page.get_by_label("Cohort", exact=True)).to_have_value("ours")
    drop(page.locator(".drop"), scratch=log([4.5, 4.0, 3.8, 3.7]))
    expect(page.get_by_role("heading", name="3. What would come in")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="scratch")
    expect(row).to_contain_text("3.7000 nats")
    expect(row).to_contain_text("400k tokens")
    assert client.runs().data == []  # a dry run stores nothing
    accessible(page)
    shoot(page, "import")

    page.get_by_label("Run's name").fill("scratch-1")
    expect(page.get_by_text("Something was changed since the dry run")).to_be_visible()
    page.get_by_role("button", name="Show what would come in", exact=True).click()
    page.get_by_role("button", name="Import 1 run").click()
    expect(page.get_by_role("heading", name="1 run came in")).to_be_visible()
    (run,) = client.runs().data
    assert (run.name, run.cohort, run.source) == ("scratch-1", "ours", "import")
    assert (run.grown_tokens, run.final_loss, run.target_params) == (4e5, 3.7, 4e5)
    assert [point.value for point in client.points(run.run_id)] == [4.5, 4.0, 3.8, 3.7]
    assert page.url.endswith("mapping=our-trainer")

    drop(page.locator(".drop"), again=log([4.5, 4.0, 3.8, 3.7]))
    expect(page.get_by_role("button", name="Nothing new to import")).to_be_disabled()


def test_a_growth_is_joined_from_two_logs(page: Page, served: Served, tmp_path: Path) -> None:
    page.goto(served.page("import.html?way=growth&cohort=ours"))
    for name, value in {
        "Target size N": "400k", "Base size": "1e5", "Tokens seen": "step * 1000", "Tokens of the base's log": "step * 500",
        "Corpus": "web", "Tokenizer": "bpe", "What columns mean": "val_loss = validation_loss on web",
    }.items():  # fmt: skip
        field = page.get_by_label(name, exact=True)
        expect(field).to_be_attached()  # `is_visible` waits for nothing: the form may not be drawn yet
        if not field.is_visible():
            field.evaluate("element => { element.closest('details').open = true; }")
        field.fill(value)
    base = tmp_path / "base.csv"
    base.write_text(log([5.0, 4.6]))
    page.locator("[data-part=base] input[type=file]").set_input_files(base)
    drop(page.locator("[data-part=grown]"), grown=log([4.1, 3.6]))
    expect(page.get_by_role("heading", name="3. What would come in")).to_be_visible()
    page.get_by_role("button", name="Import 1 run").click()
    expect(page.get_by_role("heading", name="1 run came in")).to_be_visible()
    (run,) = served.client.runs().data
    assert (run.growth_factor, run.growth_timing_tokens, run.grown_tokens) == (4.0, 1e5, 2e5)


def test_files_of_a_run_each_come_in_together_and_bad_ones_stay_out(page: Page, served: Served) -> None:
    served.client.save_mapping("our-trainer", MAPPING)
    page.goto(served.page("import.html?way=each&mapping=our-trainer"))
    drop(page.locator(".drop"), a=log([4.5, 4.0]), b=log([4.4, 3.9]), empty="nothing,here\n")
    expect(page.get_by_text("1 file makes no run and would stay out")).to_be_visible()
    page.get_by_role("button", name="Import 2 runs").click()
    expect(page.get_by_role("heading", name="2 runs came in")).to_be_visible()
    assert sorted(run.name for run in served.client.runs()) == ["a", "b"]


def test_errors_stand_at_their_fields(
    page: Page, served: Served, accessible: Accessible, expected_errors: list[str]
) -> None:
    expected_errors.append("422")
    page.goto(served.page("import.html"))
    drop(page.locator(".drop"), scratch=log([4.5, 4.0]))
    expect(page.get_by_label("Run's name")).to_have_value("scratch")
    page.get_by_role("button", name="Show what would come in", exact=True).click()
    expect(page.locator("#cohort-wrong")).to_contain_text("name the cohort")
    page.get_by_label("Cohort", exact=True).fill("ours")
    page.get_by_label("Target size N").fill("many")
    page.get_by_role("button", name="Show what would come in", exact=True).click()
    expect(page.locator("#target_params-wrong")).to_contain_text("a number")
    page.get_by_label("Target size N").fill("400k")
    page.get_by_role("button", name="Show what would come in", exact=True).click()
    expect(page.locator("#tokens-wrong")).to_contain_text("never guessed")  # what the service said, where it belongs
    page.locator("#tokens").fill("step * 1000")
    page.get_by_role("button", name="Show what would come in", exact=True).click()
    expect(page.locator("#columns-wrong")).to_contain_text("does not say what its columns hold")
    expect(page.locator("#tokens-wrong")).not_to_be_attached()
    accessible(page)
    assert served.client.runs().data == []


def test_the_bundled_grid_is_shown_first_too(page: Page, served: Served) -> None:
    page.goto(served.page("import.html"))
    page.get_by_text("Or take the grid of growth runs").click()
    page.get_by_role("button", name="Show what would come in of the grid").click()
    count = len(pd.read_csv(bundled_dir("runs") / "headers.csv"))
    button = page.get_by_role("button", name=f"Import {count} runs")
    expect(button).to_be_visible()
    assert served.client.runs().data == []
    button.click()
    expect(page.get_by_role("heading", name=f"{count} runs came in")).to_be_visible()
    assert len(list(served.client.runs(limit=1000))) == count
