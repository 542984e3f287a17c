"""What the pages cost a reader: their weight, their first useful picture, and a new surface after a slider.

    python tests/benchmarks/bench_dashboard.py [--rounds 5] [--out FILE]

A real service over the bundled grid runs and the guideline stored for tests, and Debian's Chromium, as measured by the browser.

- **Weight**: bytes of every page on the wire, its charts' library included where the page loads it (DevTools protocol,
  `Network.loadingFinished`); goal 2.5 MB.
- **First useful picture**: from the start of the navigation, cache empty, to the page's answer in words: the front page
  marks it (`answer-drawn`), for the others it is the largest paint. Goal 1 s. Floor: a bare page that loads the same files,
  measured in the same round.
- **Slider to new surface**: from the input event to the map drawn anew (`surface-drawn`); goal 300 ms. Floor: the same
  `POST /recommend`, then the same `GET /surface`, by `fetch` in the same browser, without drawing.

Rounds go through all arms one after the other, so a machine that drifts drifts for all. Medians with their ranges.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from conftest import RunningService
from grid_service import QUERY, start_with_grid
from playwright.sync_api import Browser, Page, Request, sync_playwright

from app.dashboard import PAGES_DIR

GOALS = {"page_megabytes": 2.5, "first_picture_seconds": 1.0, "surface_milliseconds": 300.0}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PLAN = f"index.html?{QUERY}&landscape=1"
_LARGEST_PAINT = """() => new Promise((resolve) => new PerformanceObserver(
  (list) => resolve(list.getEntries().at(-1).startTime)).observe({ type: "largest-contentful-paint", buffered: true }))"""
_MARK = "name => performance.getEntriesByName(name)[0]?.startTime ?? null"
# The input event to the mark, with the state before it forgotten.
_SLIDE = """value => new Promise((resolve) => {
  performance.clearMarks("surface-drawn");
  const slider = document.querySelector('input[type=range][aria-label=Budget]');
  const begun = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const look = () => {
    const mark = performance.getEntriesByName("surface-drawn")[0];
    if (mark) resolve(mark.startTime - begun);
    else requestAnimationFrame(look);
  };
  look();
})"""
# What the page asked for after that movement, asked again.
_FETCH = """async ([body, surface]) => {
  const begun = performance.now();
  const headers = { "Content-Type": "application/json" };
  await (await fetch("../recommend", { method: "POST", headers, body })).json();
  await (await fetch(surface)).json();
  return performance.now() - begun;
}"""


def pages() -> list[str]:
    """Every page there is; the front page with its landscape open, so that it has its charts."""
    return [PLAN if file.name == "index.html" else file.name for file in sorted(PAGES_DIR.glob("*.html"))]


def fresh(browser: Browser) -> Page:
    return browser.new_context(viewport={"width": 1280, "height": 900}).new_page()


def weigh(browser: Browser, url: str) -> tuple[int, list[str]]:
    """Bytes on the wire of a page whose cache is empty, and the static files that it loaded."""
    page = fresh(browser)
    sizes: list[float] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    files: list[str] = []
    page.on("request", lambda request: files.append(request.url) if "/ui/" in request.url else None)
    page.goto(url, wait_until="networkidle")
    if "landscape" in url:
        page.wait_for_function("() => performance.getEntriesByName('landscape-drawn').length > 0")
    page.context.close()
    return int(sum(sizes)), files


def first_picture(browser: Browser, url: str) -> float:
    """Seconds to the first useful picture, cache empty."""
    page = fresh(browser)
    page.goto(url, wait_until="networkidle")
    marked = page.evaluate(_MARK, "answer-drawn") if "index.html" in url else None
    milliseconds = page.evaluate(_LARGEST_PAINT) if marked is None else marked
    page.context.close()
    return float(milliseconds) / 1000


def bare_picture(browser: Browser, origin: str, files: list[str]) -> float:
    """Seconds to a bare page that has loaded the same files."""
    page = fresh(browser)
    links = "".join(
        f'<link rel="stylesheet" href="{url}">' if url.endswith(".css") else f'<link rel="modulepreload" href="{url}">'
        for url in files
        if url.endswith((".css", ".js"))
    )
    bare = f"{origin}/ui/bare.html"
    body = f"<!doctype html><title>bare</title><link rel=icon href=data:,>{links}<h1>bare</h1>"
    page.route(bare, lambda route: route.fulfill(body=body, content_type="text/html"))
    page.goto(bare, wait_until="networkidle")
    ended = page.evaluate("() => Math.max(...performance.getEntriesByType('resource').map((one) => one.responseEnd))")
    page.context.close()
    return float(ended) / 1000


def slide(page: Page, value: float) -> tuple[float, float]:
    """Milliseconds from a slider's movement to the new surface, and of the bare calls behind it."""
    asked: list[Request] = []

    def heard(request: Request) -> None:
        asked.append(request)

    page.on("request", heard)
    drawn = float(page.evaluate(_SLIDE, str(value)))
    page.remove_listener("request", heard)
    question = [request.post_data for request in asked if request.url.endswith("/recommend")][-1]
    surface = [request.url for request in asked if "/surface?" in request.url and "num_budgets" not in request.url][-1]
    return drawn, float(page.evaluate(_FETCH, [question, surface]))


def told(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), digits), "lowest": round(min(values), digits),
        "highest": round(max(values), digits),
    }  # fmt: skip


def measure(browser: Browser, url: str, rounds: int) -> dict[str, Any]:
    origin = url.rstrip("/")
    weights, files = {}, {}
    pictures: dict[str, list[float]] = {}
    bare: dict[str, list[float]] = {}
    for name in pages():
        weights[name], files[name] = weigh(browser, f"{origin}/ui/{name}")
    drawn: list[float] = []
    calls: list[float] = []
    page = fresh(browser)
    page.goto(f"{origin}/ui/{PLAN}")
    page.wait_for_function("() => performance.getEntriesByName('landscape-drawn').length > 0")
    for place in range(rounds):
        for name in pages():
            # The picture is the answer in words: the charts below it may come later.
            pictures.setdefault(name, []).append(first_picture(browser, f"{origin}/ui/{name}"))
            bare.setdefault(name, []).append(bare_picture(browser, origin, files[name]))
        # To and fro inside what the guideline knows; never where the slider stands.
        new, floor = slide(page, 6.1 + 0.1 * (place % 4))
        drawn.append(new)
        calls.append(floor)
    page.context.close()
    return {
        "pages": {
            name.split("?")[0]: {
                "megabytes": round(weights[name] / 1e6, 3),
                "first_picture_seconds": told(pictures[name], 3),
                "bare_page_seconds": told(bare[name], 3),
            }
            for name in pages()
        },
        "slider_to_surface_milliseconds": told(drawn, 1),
        "bare_calls_milliseconds": told(calls, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="such as data/benchmarks/dashboard.json")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="growthlaw-bench-") as name, sync_playwright() as playwright:
        data_dir = Path(name) / "data"
        data_dir.mkdir()
        service = RunningService(data_dir)
        try:
            client = start_with_grid(service)
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            found = measure(browser, client.url, options.rounds)
            version = browser.version
            browser.close()
        finally:
            service.stop()
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "goals": GOALS,
        "num_rounds": options.rounds,
        "machine": {
            "cpus": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
            "load_average_1_5_15_before": [round(one, 2) for one in load_before],
            "load_average_1_5_15_after": [round(one, 2) for one in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), "chromium": version},
        **found,
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    heaviest = max(one["megabytes"] for one in found["pages"].values())
    slowest = max(one["first_picture_seconds"]["median"] for one in found["pages"].values())
    surface = found["slider_to_surface_milliseconds"]["median"]
    print(
        f"heaviest page {heaviest:.2f} MB (goal {GOALS['page_megabytes']}), first picture {slowest:.2f} s "
        f"(goal {GOALS['first_picture_seconds']:.0f}), new surface {surface:.0f} ms (goal "
        f"{GOALS['surface_milliseconds']:.0f}; the bare calls {found['bare_calls_milliseconds']['median']:.0f})"
    )


if __name__ == "__main__":
    main()
