"""The page of workers shows this machine's cores and what runs on them."""

from __future__ import annotations

from collections.abc import Callable

from conftest import RunningService
from playwright.sync_api import Page, expect


def test_it_names_this_machine(
    page: Page, service: RunningService, shoot: Callable[..., None], accessible: Callable[[Page], None]
) -> None:
    client = service.start()
    page.goto(f"{client.url}/ui/workers.html")
    (worker,) = client.workers()
    expect(page.get_by_role("heading", name=worker["name"])).to_be_visible()
    accessible(page)
    shoot(page, "workers")
