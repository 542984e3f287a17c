"""What tests of the pages share: Debian's Chromium, a page that may not err nor leave the service, and screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, Request, expect

SHOTS_DIR = Path(__file__).parent / "shots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing of the browser's own goes to the network: a request to another host is then the page's.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return {"executable_path": CHROMIUM, "args": ARGUMENTS}


@pytest.fixture(scope="session")
def browser_context_args() -> dict[str, Any]:
    size = {"width": 1280, "height": 900}
    return {"viewport": size, "color_scheme": "light", "locale": "en-GB", "timezone_id": "UTC"}


@pytest.fixture
def expected_errors() -> list[str]:
    """Parts of console errors that a test brings about on purpose: it appends them."""
    return []


@pytest.fixture
def page(page: Page, expected_errors: list[str]) -> Iterator[Page]:
    """A page whose test fails by an error in the console, an uncaught one, or a request to another host than its own."""
    errors: list[str] = []
    hosts: set[str] = set()

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(f"{message.text} ({message.location.get('url', '')})")

    def on_request(request: Request) -> None:
        if request.url.startswith(("http:", "https:", "ws:", "wss:")):
            hosts.add(urlsplit(request.url).hostname or "")

    page.on("console", on_console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", on_request)
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    yield page
    assert hosts <= {"127.0.0.1"}
    assert [error for error in errors if not any(part in error for part in expected_errors)] == []


@pytest.fixture
def shoot() -> Callable[..., None]:
    """Save a picture of the whole page in light and in dark, where GROWTHLAW_SHOTS is set: `shoot(page, "runs")`."""

    def save(page: Page, name: str) -> None:
        if not os.environ.get("GROWTHLAW_SHOTS"):
            return
        for theme in ("light", "dark"):
            if page.evaluate("document.documentElement.dataset.theme") != theme:
                page.get_by_role("button", name="colours").click()
            page.wait_for_timeout(300)  # a chart is drawn anew
            page.screenshot(path=SHOTS_DIR / f"{name}-{theme}.png", full_page=True)
        page.get_by_role("button", name="colours").click()

    return save


@pytest.fixture
def accessible() -> Callable[[Page], None]:
    """Fails by a serious violation that axe-core finds on the page as it stands, naming the rule and the element."""

    def check(page: Page) -> None:
        found = Axe().run(page).response["violations"]
        told = [
            f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
            for one in found
            if one["impact"] in SERIOUS
        ]
        assert told == []

    return check
