"""What every Log promises, checked on the one in memory and on the real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from helix_es.core import events as e
from helix_es.core.errors import Conflict
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision
from helix_es.log import Log, Snapshot
from helix_es.testing import InMemoryLog
from tests.conftest import NatsServer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "jetstream"])
async def log(request: pytest.FixtureRequest) -> AsyncIterator[Log]:
    if request.param == "memory":
        yield InMemoryLog(lambda: int(time.time() * 1000))
        return
    server: NatsServer = request.getfixturevalue("nats_server")
    connection = await connect(NatsSettings(url=server.url))
    await provision(connection)
    yield JetStreamLog(connection)
    await connection.close()


def created(session: str) -> e.SessionCreated:
    return e.SessionCreated(
        session=e.SessionId(session), owner="ann", mode="create", type="text", model="mistral"
    )


def closed(session: str) -> e.SessionClosed:
    return e.SessionClosed(session=e.SessionId(session))


async def take(log: Log, n: int, after: int = 0, filters: tuple[str, ...] = ()) -> list[e.Recorded]:
    got: list[e.Recorded] = []
    async with asyncio.timeout(20):
        async for batch in log.follow(after, filters=filters):
            got += batch.records
            if len(got) >= n:
                return got
    raise AssertionError


async def test_an_append_returns_its_sequence_and_reads_back(log: Log) -> None:
    before = int(time.time() * 1000) - 1000
    seq = await log.append(created("a"), expected_seq=0, key="k1", headers={"traceparent": "00-x"})
    (record,) = await log.history("session.a.>")
    assert record.seq == seq == await log.last_seq()
    assert record.event == created("a")
    assert record.subject == "session.a.created.text.mistral"
    assert record.headers["traceparent"] == "00-x"
    assert record.headers["Nats-Msg-Id"] == "k1"
    assert before <= record.at_ms <= before + 60_000


async def test_a_stale_writer_conflicts_and_changes_nothing(log: Log) -> None:
    seq = await log.append(created("a"), expected_seq=0, key="k1")
    with pytest.raises(Conflict):
        await log.append(closed("a"), expected_seq=0, key="k2")
    with pytest.raises(Conflict):
        await log.append(closed("a"), expected_seq=seq + 7, key="k3")
    assert len(await log.history("session.a.>")) == 1
    await log.append(closed("a"), expected_seq=seq, key="k4")


async def test_fences_of_two_sessions_do_not_touch(log: Log) -> None:
    await log.append(created("a"), expected_seq=0, key="k1")
    await log.append(created("b"), expected_seq=0, key="k2")
    await log.append(created("a-b"), expected_seq=0, key="k3")


async def test_a_repeated_append_is_recognised_as_done(log: Log) -> None:
    seq = await log.append(created("a"), expected_seq=0, key="k1")
    assert await log.append(created("a"), expected_seq=0, key="k1") == seq
    await log.append(closed("a"), expected_seq=seq, key="k2")
    assert await log.append(created("a"), expected_seq=0, key="k1") == seq, "even when others came after"
    assert len(await log.history("session.a.>")) == 2


async def test_of_many_writers_at_once_one_wins(log: Log) -> None:
    results = await asyncio.gather(
        *(log.append(created("a"), expected_seq=0, key=f"k{n}") for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(r, int) for r in results) == 1
    assert sum(isinstance(r, Conflict) for r in results) == 19


async def test_following_gives_everything_once_in_order_and_says_when_it_caught_up(log: Log) -> None:
    first = [await log.append(created(f"s{n}"), expected_seq=0, key=f"k{n}") for n in range(50)]
    assert [r.seq for r in await take(log, 50)] == first
    seen: list[int] = []
    caught_up = asyncio.Event()

    async def reader() -> None:
        async for batch in log.follow(first[9]):
            seen.extend(r.seq for r in batch.records)
            if batch.pending == 0:
                caught_up.set()
            if len(seen) == 90:
                return

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(reader())
        await caught_up.wait()
        later = [await log.append(created(f"t{n}"), expected_seq=0, key=f"t{n}") for n in range(50)]
    assert seen == first[10:] + later


async def test_an_empty_log_says_at_once_that_it_is_caught_up(log: Log) -> None:
    async with asyncio.timeout(10):
        async for batch in log.follow(0):
            assert batch.records == []
            assert batch.pending == 0
            return


async def test_following_a_filter_leaves_out_the_rest(log: Log) -> None:
    seq = await log.append(created("a"), expected_seq=0, key="k1")
    await log.append(created("b"), expected_seq=0, key="k2")
    await log.append(closed("a"), expected_seq=seq, key="k3")
    got = await take(log, 2, filters=("session.a.>",))
    assert [r.subject for r in got] == ["session.a.created.text.mistral", "session.a.closed"]


async def test_history_is_whole_however_long(log: Log) -> None:
    seq = await log.append(created("a"), expected_seq=0, key="k0")
    for n in range(1100):
        event = e.TurnProgressed(
            session=e.SessionId("a"), turn=1, attempt=1, gpu=e.GpuId("g-0"), step=n, steps=1100
        )
        seq = await log.append(event, expected_seq=seq, key=f"k{n + 1}")
    records = await log.history("session.a.>")
    assert len(records) == 1101
    assert [r.seq for r in records] == sorted(r.seq for r in records)
    assert len(await log.history("session.a.>", after_seq=records[999].seq)) == 101
    assert await log.history("session.nobody.>") == []


async def test_a_snapshot_comes_back_and_the_newest_counts(log: Log) -> None:
    assert await log.load_snapshot("occupancy") is None
    await log.save_snapshot("occupancy", Snapshot(3, b"three\nlines"))
    await log.save_snapshot("occupancy", Snapshot(9, b"x" * 300_000))
    assert await log.load_snapshot("occupancy") == Snapshot(9, b"x" * 300_000)
