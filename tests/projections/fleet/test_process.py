"""`helix fleet` as a process, on a real server, with fake runners: killed, ended, started twice, misconfigured."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_es.jetstream.client import Connection
from helix_es.jetstream.log import JetStreamLog
from tests.conftest import NatsServer
from tests.projections.fleet.stage import Stage, staged

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ROOT = Path(__file__).parents[3]
FLEET = Path(__file__).with_name("fake_fleet.py")


class Shop:
    """A server with a log, a configuration, and a stage where runners appear."""

    def __init__(self, folder: Path, server: NatsServer, connection: Connection, stage: Stage) -> None:
        self.folder = folder
        self.stage = stage
        self.config = folder / "helix.toml"
        self.config.write_text("[pool.burst]\nmax = 4\n")
        self._url = server.url
        self.log = JetStreamLog(connection)
        self._said = 0

    async def resized(self, size: int) -> None:
        event = e.FleetResized(pool="burst", size=size, reason="test", decided_seq=0, decided_at_ms=0)
        self._said = await self.log.append(event, expected_seq=self._said, key=f"{self._said}")

    @asynccontextmanager
    async def fleet(
        self, program: str = str(FLEET), words: str = ""
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a fleet: by default with fake runners."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, program, words or str(self.stage.socket), "--nats", self._url),
            *("--config", str(self.config), "--data-dir", str(self.folder / "data")),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            _, said = await process.communicate()
            print(said.decode())  # shown where the test fails


@pytest.fixture
async def shop(tmp_path: Path, nats_server: NatsServer, connection: Connection) -> AsyncIterator[Shop]:
    async with staged(tmp_path) as stage:
        yield Shop(tmp_path, nats_server, connection, stage)


async def test_the_size_that_the_log_says_is_made_and_on_sigterm_all_end_in_order(shop: Shop) -> None:
    await shop.resized(2)
    async with shop.fleet() as process:
        cast = await shop.stage.cast(2)
        assert all(actor.url.startswith("nats://127.0.0.1") for actor in cast.values())
        await shop.resized(3)
        third = await shop.stage.next()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # an impatient hand must not cut it short
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, said.decode()
    for actor in (*cast.values(), third):
        await actor.ended()
    assert not (shop.folder / "data/fleet/burst/pids.json").exists()


async def test_a_fleet_killed_with_kill_9_leaves_no_runner(shop: Shop) -> None:
    await shop.resized(2)
    async with shop.fleet() as process:
        cast = await shop.stage.cast(2)
        process.kill()
        for actor in cast.values():
            await actor.ended()


async def test_the_next_fleet_ends_a_runner_that_heeded_nothing_and_makes_the_size_anew(shop: Shop) -> None:
    await shop.resized(1)
    async with shop.fleet() as process:
        stubborn = await shop.stage.next()
        await stubborn.tell("deaf")
        process.kill()
        await process.wait()
        await stubborn.tell("stay")
        async with shop.fleet():
            await stubborn.ended()
            assert (await shop.stage.next()).pid != stubborn.pid


async def test_a_real_runner_joins_the_pool_that_it_was_started_for(shop: Shop) -> None:
    await shop.resized(1)
    async with shop.fleet(program="-c", words="from helix_es.cli.fleet import fleet; fleet()") as process:
        async with asyncio.timeout(60):
            async for batch in shop.log.follow(0, filters=["gpu.*.joined", "gpu.*.left"]):
                said = [record.event for record in batch.records]
                if any(isinstance(event, e.GpuLeft) for event in said):
                    break
                for event in said:
                    assert isinstance(event, e.GpuJoined)
                    assert event.pool == "burst"
                    assert event.gpu.endswith("-burst-0")
                    process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_second_fleet_on_the_same_data_is_refused(shop: Shop) -> None:
    await shop.resized(1)
    async with shop.fleet():
        first = await shop.stage.next()
        async with shop.fleet() as second:
            _, said = await asyncio.wait_for(second.communicate(), 30)
            assert second.returncode == 2
            assert b"another 'helix fleet' is using it" in said
            assert said.count(b"\n") == 1
        await first.tell("stay")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "no [pool.<name>]"),
        ("[pool.burst]\nprovider = 'command'\n", "pool.burst.command: is empty"),
        ("[pool.burst]\nprovider = 'kubernetes'\n", "pool.burst.deployment: found ''"),
        (
            "[pool.burst]\nprovider = 'kubernetes'\ndeployment = 'x'\nkubeconfig = '/no/such/file'\n",
            "no way to a cluster",
        ),
    ],
)
async def test_a_wrong_configuration_is_one_line_and_exit_code_2(
    shop: Shop, config: str, message: str
) -> None:
    shop.config.write_text(config)
    async with shop.fleet() as process:
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 2, said.decode()
        assert message in said.decode()
        assert said.count(b"\n") == 1


async def test_a_command_is_run_for_what_the_log_says(shop: Shop) -> None:
    fifo = shop.folder / "fifo"
    os.mkfifo(fifo)
    shop.config.write_text(
        f"[pool.burst]\nmax = 4\nprovider = 'command'\ncommand = 'echo $HELIX_SIZE $HELIX_PREVIOUS > {fifo}'\n"
    )
    await shop.resized(3)
    async with shop.fleet():
        assert await asyncio.wait_for(asyncio.to_thread(fifo.read_text), 30) == "3 0\n"
        await shop.resized(1)
        assert await asyncio.wait_for(asyncio.to_thread(fifo.read_text), 30) == "1 3\n"
