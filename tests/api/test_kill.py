"""`kill -9` of the service and of PostgreSQL while eight clients write: what was acknowledged is there, once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from writers import Writers, check_nothing_lost

SEEDS = [pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 21)]


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_a_killed_service_loses_nothing_acknowledged(service: Any, seed: int) -> None:
    chance = random.Random(seed)
    service.start()
    with Writers(lambda: service.client.url, seed) as writers:
        writers.wait_for(chance.randint(10, 80))
        service.kill()
        service.start()
        before = writers.num_acknowledged
        writers.wait_for(before + 20)  # they go on, with what was in doubt sent again
    assert writers.num_failures > 0, "the kill came between requests"
    check_nothing_lost(service.client, writers)


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_a_killed_postgresql_loses_nothing_acknowledged(service: Any, postgres: Any, seed: int) -> None:
    chance = random.Random(seed)
    service.environment["GROWTHLAW_DATABASE_URL"] = postgres.new_database()
    service.start()
    with Writers(lambda: service.client.url, seed) as writers:
        for _ in range(2):
            writers.wait_for(writers.num_acknowledged + chance.randint(10, 80))
            postgres.kill()
            postgres.start()
        before = writers.num_acknowledged
        writers.wait_for(before + 20)
    assert writers.num_failures > 0, "the kill came between requests"
    check_nothing_lost(service.client, writers)


@pytest.mark.long
def test_service_and_postgresql_killed_together(service: Any, postgres: Any) -> None:
    service.environment["GROWTHLAW_DATABASE_URL"] = postgres.new_database()
    service.start()
    chance = random.Random(0)
    with Writers(lambda: service.client.url, 0) as writers:
        for _ in range(5):
            writers.wait_for(writers.num_acknowledged + chance.randint(10, 80))
            postgres.kill()
            service.kill()
            postgres.start()
            service.start()
        writers.wait_for(writers.num_acknowledged + 20)
    check_nothing_lost(service.client, writers)
