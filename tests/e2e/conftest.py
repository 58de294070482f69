"""One running shop for the tests that only talk to it; those that kill something start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.shop import Client, Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    running = Shop(tmp_path_factory.mktemp("shop"), config="[sessions]\nidle_after_s = 0.5\n")
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[Client]:
    async with Client(shop.url) as made:
        yield made
