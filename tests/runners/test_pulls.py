"""How a line that a GPU took tasks from comes to its end: nothing is lost there, and nobody waits for it."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core.subjects import shared_consumer
from helix_es.jetstream.streams import provision_workload
from helix_es.jetstream.tasks import TaskPuller
from tests.runners.floor import CHAT, PATIENCE_S, Floor

pytestmark = pytest.mark.anyio


@pytest.fixture
async def puller(floor: Floor) -> TaskPuller:
    await provision_workload(floor.connection, CHAT)
    made = TaskPuller(floor.connection, shared_consumer(CHAT), prioritized=True)
    await made.open()
    return made


async def waiting(puller: TaskPuller, expires_s: float) -> asyncio.Task[object]:
    """Send a pull; the broker has it when this returns."""
    pulling: asyncio.Task[object] = asyncio.create_task(puller.pull(expires_s=expires_s))
    info = f"CONSUMER.INFO.TASKS.{shared_consumer(CHAT)}"
    async with asyncio.timeout(PATIENCE_S):
        while not (await puller._connection.api(info))["num_waiting"]:  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
    return pulling


async def test_a_pull_ends_when_its_line_is_retired(puller: TaskPuller) -> None:
    pulling = await waiting(puller, 2.0)
    puller.retire()
    assert await asyncio.wait_for(pulling, 0.5) is None
    assert await asyncio.wait_for(puller.pull(), 0.5) is None
    await puller.close()


async def test_what_a_retired_line_still_brings_goes_back_at_once(floor: Floor, puller: TaskPuller) -> None:
    pulling = await waiting(puller, 4.0)
    puller.retire()
    await pulling
    draining = asyncio.create_task(puller.drain())
    await floor.open("s1")
    async with asyncio.timeout(2):  # not only when it expires
        await draining
        assert await floor.another_gets() == "s1"


async def test_a_retired_line_is_left_when_its_pull_expires(puller: TaskPuller) -> None:
    pulling = await waiting(puller, 0.3)
    puller.retire()
    await pulling
    await asyncio.wait_for(puller.drain(), 1.5)


async def test_a_task_that_nobody_took_goes_back_when_the_line_is_closed(
    floor: Floor, puller: TaskPuller
) -> None:
    pulling = await waiting(puller, 4.0)
    pulling.cancel()
    await floor.open("s1")
    async with asyncio.timeout(PATIENCE_S):
        while puller._arrived.empty():  # noqa: ASYNC110 - it comes from the broker
            await asyncio.sleep(0.01)
    await puller.close()
    async with asyncio.timeout(2):
        assert await floor.another_gets() == "s1"
