"""Simulated GPUs on a real server: they obey assignments, hold to their slots, and believe only the log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from helix_es.core import events as e
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.log import JetStreamLog
from helix_es.settings import Settings
from helix_runners.simulated.crowd import Crowd
from helix_runners.simulated.main import card_of, names_of, tools_of
from helix_runners.simulated.standing import Standing
from helix_runners.simulated.words import answer
from tests.conftest import NatsServer
from tests.runners.simulated.shop import PATIENCE_S, QUICK, SLOW, Shop, options, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def shop(connection: Connection) -> Shop:
    return Shop(connection)


async def test_a_session_is_served_and_continued_where_it_is(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(pool="night")):
        _, joined = await shop.fact(e.GpuJoined, lambda x: x.gpu == "sim-1")
        assert joined.kind == "a100-80"
        assert joined.pool == "night"
        assert joined.slots["mistral"] > 1
        assert joined.workloads == [e.Workload("create", "text", "mistral")]
        await shop.ready("sim-1", 2)
        await shop.open("s1", max_tokens=12)
        first = await shop.completed("s1")
        assert first.output == answer("s1", 1, {"max_tokens": 12})
        assert first.output.split()[:2] == ["s1-1-0", "s1-1-1"]
        assert first.usage.completion_tokens == len(first.output.split()) == 12
        assert first.finish_reason == "length"
        await shop.proceed("s1", "and then?")
        second = await shop.completed("s1", turn=2)
        assert second.gpu == "sim-1"
        assert second.output == answer("s1", 2, {"max_tokens": 12})
        assert second.usage.cached_tokens == first.usage.prompt_tokens + 12
        started = [each.event for each in await shop.log.history("session.s1.turn.started.>")]
        assert [each.gpu for each in started if isinstance(each, e.TurnStarted)] == ["sim-1", "sim-1"]


async def test_pieces_make_the_whole_answer(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options()):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=60)
        done = await shop.completed("s1")
        pieces = await Deltas(shop.connection).read("s1", 1, 1)
        assert "".join(piece.text for piece in pieces) == done.output
        assert [piece.offset for piece in pieces] == [
            sum(len(before.text) for before in pieces[:index]) for index in range(len(pieces))
        ]
        assert 1 < len(pieces) < 60, "what comes fast comes together"


async def test_without_deltas_only_the_log_has_the_answer(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(deltas=False)):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=5)
        assert (await shop.completed("s1")).output == answer("s1", 1, {"max_tokens": 5})
        assert await Deltas(shop.connection).read("s1", 1, 1) == []


async def test_no_gpu_ever_holds_more_than_its_slots(nats_server: NatsServer, shop: Shop) -> None:
    names = [f"s{index}" for index in range(12)]
    async with running(nats_server, options()):
        await shop.ready("sim-0", 2)
        await shop.ready("sim-1", 3)
        await asyncio.gather(*(shop.open(name, max_tokens=4) for name in names))
        for _ in names:  # each slot is free for the next as soon as this is stored
            await shop.release(await someone_idle(shop, names))
    held: dict[str, set[str]] = {"sim-0": set(), "sim-1": set()}
    for record in await shop.log.history("session.>"):
        if isinstance(record.event, e.TurnStarted):
            held[record.event.gpu].add(record.event.session)
        elif isinstance(record.event, e.SessionReleased):
            held[record.event.gpu].discard(record.event.session)
        assert len(held["sim-0"]) <= 2
        assert len(held["sim-1"]) <= 3


async def someone_idle(shop: Shop, names: list[str]) -> str:
    """Return a session whose turn has ended and that still holds its slot; wait for one."""

    async def idle() -> str:
        while True:
            for name in names:
                if (await shop.session(name)).phase == "idle":
                    return name

    return await asyncio.wait_for(idle(), PATIENCE_S)


async def test_a_gpu_that_drains_takes_nothing_and_keeps_who_is_bound(
    nats_server: NatsServer, shop: Shop
) -> None:
    async with running(nats_server, options(count=1)):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=4)
        await shop.completed("s1")
        drained = await shop.ready("sim-0", 0)
        await shop.open("s2", max_tokens=4)
        await shop.proceed("s1", "still there?")
        await shop.completed("s1", turn=2)
        again = await shop.ready("sim-0", 2)
        started, _ = await shop.started("s2")
        assert drained < again < started


async def test_a_gpu_that_is_given_up_joins_anew_and_says_the_same_again(
    nats_server: NatsServer, shop: Shop
) -> None:
    async with running(nats_server, options(count=1, service=SLOW)):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=20)
        _, first = await shop.started("s1")
        await shop.lose("sim-0")
        await shop.release("s1", "lost")
        _, joined = await shop.fact(e.GpuJoined, lambda x: x.incarnation != first.incarnation)
        await shop.ready("sim-0", 1)
        await shop.admit("s1")
        done = await shop.completed("s1")
        assert (done.attempt, done.output) == (2, answer("s1", 1, {"max_tokens": 20}))
        _, second = await shop.started("s1", attempt=2)
        assert second.incarnation == joined.incarnation
        told = [await Deltas(shop.connection).read("s1", 1, attempt) for attempt in (1, 2)]
        heard, whole = ("".join(piece.text for piece in pieces) for pieces in told)
        assert whole.startswith(heard)
    assert not [each for each in await shop.log.history("session.s1.>") if ended_first(each.event)]


def ended_first(event: e.AnyEvent | None) -> bool:
    """Whether it ends the attempt that was lost."""
    return isinstance(event, e.TurnCompleted | e.TurnFailed | e.TurnCancelled) and event.attempt == 1


async def test_a_gpu_that_is_to_leave_goes_when_nobody_is_bound(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(count=1)) as (_, serving):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=4)
        await shop.completed("s1")
        await shop.ready("sim-0", 0, leaving=True)
        assert not serving.done()
        released = await shop.release("s1", "drained")
        left, _ = await shop.fact(e.GpuLeft)
        assert left > released
        await asyncio.wait_for(serving, PATIENCE_S)


async def test_one_that_stops_ends_its_turns_and_leaves(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options()) as (crowd, serving):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=10)
        await shop.started("s1")
        crowd.stop()
        await asyncio.wait_for(serving, PATIENCE_S)
    assert (await shop.session("s1")).phase == "idle"
    left = [each.subject for each in await shop.log.history("gpu.>") if isinstance(each.event, e.GpuLeft)]
    assert sorted(left) == ["gpu.sim-0.left", "gpu.sim-1.left"]


async def test_a_turn_that_is_cancelled_ends_with_what_was_said(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(count=1, service=SLOW)):
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=1000)
        await shop.started("s1")
        await shop.tell("s1", e.TurnCancelling)
        _, ended = await shop.fact(e.TurnCancelled)
        assert answer("s1", 1, {"max_tokens": 1000}).startswith(ended.output)
        assert (await shop.session("s1")).phase == "idle"


async def test_heartbeats_say_that_it_is_simulated(nats_server: NatsServer, shop: Shop) -> None:
    beats = Beats(shop.connection)
    async with running(nats_server, options(service=SLOW)):
        await shop.ready("sim-0", 2)
        await shop.open("s1", max_tokens=200)
        await shop.started("s1")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await beats.latest()
                beat = found["sim-0"].event if "sim-0" in found else None
                if isinstance(beat, e.GpuHeartbeat) and beat.slots_used and "sim-1" in found:
                    break
        assert beat.detail == {"simulated": True}
        assert beat.model == "mistral"
        assert beat.utilisation == 0.5
        assert 0 < beat.memory_used_bytes < beat.memory_total_bytes
        await shop.tell("s1", e.TurnCancelling)


async def test_a_gpu_is_given_another_model_when_nobody_is_bound(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(count=1, models=("mistral", "smollm2"))):
        await shop.ready("sim-0", 1)
        await shop.ready("sim-0", 0)
        await shop.ready("sim-0", 1, "create/text/smollm2")
        await shop.open("s1", max_tokens=3)  # of the first model, for which nobody is there
        await shop.open("s2", "create/text/smollm2", max_tokens=3)
        await shop.completed("s2")
        assert (await shop.session("s1")).phase == "admitted"


async def test_attempts_that_are_to_fail_go_back_or_end(nats_server: NatsServer, shop: Shop) -> None:
    names = [f"s{index}" for index in range(8)]
    async with running(nats_server, options(count=1, service=replace(QUICK, fail_rate=1.0), slots=8)):
        await shop.ready("sim-0", 8)
        for name in names:
            await shop.open(name, max_tokens=8)
        codes = set()
        for name in names:
            _, ended = await shop.fact(e.Event, lambda x, name=name: ended_badly(x) and x.session == name)
            assert isinstance(ended, e.TurnReturned | e.TurnFailed)
            codes.add((type(ended), ended.error.code))
            assert not isinstance(ended, e.TurnReturned) or 1 <= ended.held <= 8
    assert codes == {(e.TurnReturned, "out_of_memory"), (e.TurnFailed, "simulated_failure")}


def ended_badly(event: e.Event) -> bool:
    return isinstance(event, e.TurnReturned | e.TurnFailed)


class Gate(JetStreamLog):
    """A log that keeps every `started` until it is opened."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()

    async def append(
        self, event: e.AnyEvent, *, expected_seq: int, key: str, headers: Mapping[str, str] | None = None
    ) -> int:
        if isinstance(event, e.TurnStarted):
            self.arrived.set()
            await self.opened.wait()
        return await super().append(event, expected_seq=expected_seq, key=key, headers=headers)


async def test_a_lower_limit_is_in_force_only_when_nobody_is_being_started(
    nats_server: NatsServer, shop: Shop
) -> None:
    connection = await connect(NatsSettings(url=nats_server.url))
    gate, made = Gate(connection), options(count=1)
    tools = tools_of(connection, card_of(Settings(), made), made)
    tools.log = gate
    card = card_of(Settings(), made)
    standing = Standing(JetStreamLog(connection), tools.patiently, card, new_incarnation=lambda: "i1")
    crowd = Crowd(connection, names_of(made), tools, standing)
    serving = asyncio.create_task(crowd.run(heartbeat_s=0.2, drain_s=1.0))
    await shop.ready("sim-0", 1)
    await shop.open("s1", max_tokens=3)
    await asyncio.wait_for(gate.arrived.wait(), PATIENCE_S)
    assigned_seq = await shop.assign("sim-0", 0)
    async with asyncio.timeout(PATIENCE_S):
        while crowd.gpus["sim-0"].slots:
            await shop.log.last_seq()  # the follower hears meanwhile
    gate.opened.set()
    ready, _ = await shop.fact(e.GpuReady, lambda x: x.assigned_seq == assigned_seq)
    started, _ = await shop.started("s1")
    assert started < ready
    crowd.stop()
    await asyncio.wait_for(serving, PATIENCE_S)
    await connection.close()
