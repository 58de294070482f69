"""kill -9 of the projection, anywhere and often: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.streams import provision
from helix_projections.analytics.snapshots import WANTED
from tests.bench.fold import made
from tests.conftest import NatsServer
from tests.projections.analytics import victim
from tests.projections.analytics.kit import contents

KILLS = 50
EVENTS = 30_000
RUBBISH = (b"{", b'{"event":"turn.sung","session":"s1"}', b'{"event":"session.closed","session":"other"}')


@pytest.fixture
def quick_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that does not wait for the disk: it is not the one that is killed."""
    server = NatsServer(tmp_path / "nats", sync_interval="2m")
    server.start()
    yield server
    server.close()


async def fill(url: str) -> None:
    """Store a busy shop's facts, rubbish between them, and heartbeats meanwhile."""
    connection = await connect(NatsSettings(url=url))
    await provision(connection)
    for n, record in enumerate(made(EVENTS)):
        assert record.event is not None
        await connection.nc.publish(record.subject, encode(record.event))
        if n % 500 == 0:
            await rubbish_and_beats(connection, n)
    await connection.nc.flush()
    await connection.close()


async def rubbish_and_beats(connection: Connection, n: int) -> None:
    for body in RUBBISH:
        await connection.nc.publish("session.s1.closed", body)
    for gpu in range(3):
        beat = e.GpuHeartbeat(
            gpu=e.GpuId(f"n{gpu}-0"),
            incarnation="i",
            memory_total_bytes=80,
            memory_used_bytes=n % 80,
            utilisation=n / EVENTS,
            power_w=None if gpu else n,
        )
        await connection.nc.publish(f"gpu.n{gpu}-0.heartbeat", encode(beat))
    await connection.nc.publish("gpu.n0-0.heartbeat", b"no heartbeat")
    await connection.nc.flush()


@pytest.mark.faults
def test_fifty_kills_give_the_tables_of_one_clean_run(tmp_path: Path, quick_server: NatsServer) -> None:
    asyncio.run(fill(quick_server.url))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([victim.__name__])
    often, clean = tmp_path / "often", tmp_path / "clean"
    often.mkdir()
    (often / WANTED).touch()
    chance = random.Random(5)
    killed = 0
    for n in range(KILLS):
        after_s = chance.uniform(0.0, 0.12)
        killed += _killed(context, (quick_server.url, str(often)), after_s, begun=n % 4 != 0)
    assert killed > KILLS * 0.8, "most must have been killed at work"
    asyncio.run(victim.once(quick_server.url, often, victim.SMALL))
    asyncio.run(victim.once(quick_server.url, clean, victim.Pace(window_ms=victim.SMALL.window_ms)))
    found = contents(often / DATABASE)
    assert found == contents(clean / DATABASE)
    assert len(found["events"]) == EVENTS + 3 * EVENTS // 500
    assert len(found["set_aside"]) > 3 * EVENTS // 500
    assert found["heartbeats"]
    assert contents(often / SNAPSHOT) == found


def _killed(context: Any, args: tuple[str, str], after_s: float, *, begun: bool) -> bool:
    """Start the projection, kill it after so long, or so long after it `begun` to write; return whether it worked."""
    wal = Path(args[1]) / f"{DATABASE}.wal"
    before = _written(wal)
    process = context.Process(target=victim.run, args=args)
    process.start()
    deadline = time.monotonic() + 10
    while begun and _written(wal) == before and process.exitcode is None and time.monotonic() < deadline:
        process.join(0.005)
    process.join(after_s)
    at_work = process.exitcode is None
    process.kill()
    process.join()
    process.close()
    return at_work


def _written(wal: Path) -> int:
    return wal.stat().st_size if wal.exists() else 0
