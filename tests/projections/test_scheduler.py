"""Schedulers on a real server: one acts, a standby goes on in time, two do no harm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from helix_es.core import events as e
from helix_es.core.errors import Conflict
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.replica import SNAPSHOT, Replica
from helix_es.settings import Sessions, Settings
from helix_es.settings_file import SettingsFile
from helix_projections.scheduler import Scheduler
from tests.conftest import NatsServer

pytestmark = pytest.mark.anyio

FAST = Settings(sessions=Sessions(idle_after_s=0.2, heartbeat_s=0.3))
GPU = e.GpuId("box-0")


@asynccontextmanager
async def scheduling(server: NatsServer, name: str) -> AsyncIterator[Scheduler]:
    connection = await connect(NatsSettings(url=server.url, name=name))
    scheduler = Scheduler(connection, SettingsFile(settings=FAST), name=name)
    running = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await connection.close()


async def until(good: object, seconds: float = 15) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(seconds):
        while not await good():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def joined(log: JetStreamLog, incarnation: str = "i1", slots: int = 2) -> None:
    """Bring a GPU in, as far as its runner's own facts go."""
    said = await log.history(f"gpu.{GPU}.>")
    work = e.Workload("create", "text", "smollm2")
    event = e.GpuJoined(
        gpu=GPU,
        incarnation=incarnation,
        kind="cpu",
        memory_total_bytes=1,
        workloads=[work],
        slots={"smollm2": slots},
    )
    await log.append(event, expected_seq=said[-1].seq if said else 0, key=f"join{incarnation}")


async def ready(log: JetStreamLog, incarnation: str = "i1") -> None:
    """Wait for the assignment and be ready."""

    async def assigned() -> bool:
        said = await log.history(f"gpu.{GPU}.>")
        return bool(said) and isinstance(said[-1].event, e.GpuAssigned)

    await until(assigned)
    said = await log.history(f"gpu.{GPU}.>")
    event = e.GpuReady(gpu=GPU, incarnation=incarnation, model="smollm2", load_ms=1)
    await log.append(event, expected_seq=said[-1].seq, key=f"ready{incarnation}")


async def queued(log: JetStreamLog, name: str) -> None:
    about = {
        "session": e.SessionId(name),
        "mode": "create",
        "type": "text",
        "model": "smollm2",
        "owner": "ann",
    }
    seq = await log.append(e.SessionCreated(**about), expected_seq=0, key=f"{name}c")
    await log.append(e.TurnQueued(**about, turn=1, prompt="hi"), expected_seq=seq, key=f"{name}q")


async def last(log: JetStreamLog, name: str) -> e.AnyEvent | None:
    return (await log.history(f"session.{name}.>"))[-1].event


async def alive(connection: Connection) -> None:
    """Send heartbeats for ever."""
    beats = Beats(connection)
    while True:
        await beats.publish(
            e.GpuHeartbeat(
                gpu=GPU, incarnation="i1", memory_total_bytes=1, memory_used_bytes=0, utilisation=0
            )
        )
        await asyncio.sleep(0.1)


async def test_a_standby_goes_on_within_two_seconds(nats_server: NatsServer, connection: Connection) -> None:
    log = JetStreamLog(connection)
    beating = asyncio.create_task(alive(connection))
    async with scheduling(nats_server, "b-standby") as standby:
        async with scheduling(nats_server, "a-first") as first:

            async def one_acts() -> bool:
                return first.leadership.active != standby.leadership.active

            await until(one_acts)
            await joined(log)
            await ready(log)
            await queued(log, "s1")

            async def admitted_1() -> bool:
                return isinstance(await last(log, "s1"), e.TurnAdmitted)

            await until(admitted_1)
        # whichever acted is gone now, in the way of a crash: it said nothing
        begun = time.monotonic()
        await queued(log, "s2")

        async def admitted_2() -> bool:
            return isinstance(await last(log, "s2"), e.TurnAdmitted)

        await until(admitted_2)
        assert time.monotonic() - begun < 5, "generous for a loaded machine; make bench has the figure"
    beating.cancel()


async def test_two_that_act_at_once_admit_every_turn_once(
    nats_server: NatsServer, connection: Connection
) -> None:
    log = JetStreamLog(connection)
    beating = asyncio.create_task(alive(connection))
    async with scheduling(nats_server, "a") as one, scheduling(nats_server, "b") as two:
        await joined(log, slots=40)
        await ready(log)
        for scheduler in (one, two):  # as if neither had heard of the other
            scheduler.leadership.beat = lambda *_, **__: True  # type: ignore[method-assign]
            scheduler.leadership.active = True
        await asyncio.gather(*(queued(log, f"s{n}") for n in range(40)))

        async def all_admitted() -> bool:
            return len(await log.history("session.*.turn.admitted.>")) >= 40

        await until(all_admitted)
        records = await log.history("session.*.turn.admitted.>")
        assert len(records) == len({r.subject for r in records}) == 40
        assert one.leadership.active
        assert two.leadership.active
    beating.cancel()


async def test_a_silent_gpu_is_lost_and_its_session_queues_again(
    nats_server: NatsServer, connection: Connection
) -> None:
    log = JetStreamLog(connection)
    beating = asyncio.create_task(alive(connection))
    async with scheduling(nats_server, "a"):
        await joined(log)
        await ready(log)
        await queued(log, "s1")

        async def admitted() -> bool:
            return isinstance(await last(log, "s1"), e.TurnAdmitted)

        await until(admitted)
        fence = (await log.history("session.s1.>"))[-1].seq
        started = e.TurnStarted(session=e.SessionId("s1"), turn=1, attempt=1, gpu=GPU, incarnation="i1")
        seq = await log.append(started, expected_seq=fence, key="started")
        beating.cancel()

        async def released() -> bool:
            return isinstance(await last(log, "s1"), e.SessionReleased)

        await until(released)
        done = e.TurnCompleted(session=e.SessionId("s1"), turn=1, attempt=1, gpu=GPU, output="late")
        with pytest.raises(Conflict):  # the zombie's answer comes late
            await log.append(done, expected_seq=seq, key="zombie")
        await joined(log, "i2")
        await ready(log, "i2")
        await until(admitted)
        event = await last(log, "s1")
        assert isinstance(event, e.TurnAdmitted)
        assert event.attempt == 2


async def test_a_scheduler_leaves_a_snapshot_that_the_next_one_starts_from(
    nats_server: NatsServer, connection: Connection
) -> None:
    log = JetStreamLog(connection)
    async with scheduling(nats_server, "a") as scheduler:
        await queued(log, "s1")

        async def folded() -> bool:
            return "s1" in scheduler.replica.state.seats and scheduler.leadership.active

        await until(folded)
    snapshot = await log.load_snapshot(SNAPSHOT)
    assert snapshot is not None
    replica = Replica(log)
    following = asyncio.create_task(replica.run())
    await asyncio.wait_for(replica.caught_up.wait(), 10)
    assert replica.snapshot_seq == snapshot.seq
    assert "s1" in replica.state.seats
    following.cancel()
