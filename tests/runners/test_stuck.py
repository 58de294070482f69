"""A GPU that says it is alive and whose turns do not move: it says how long, and its process ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_es.core.errors import EngineError
from helix_es.jetstream.beats import Beats
from helix_runners.stall import Stall
from helix_runners.work import Job, Outcome, Output
from tests.conftest import NatsServer
from tests.runners.floor import CHAT, PATIENCE_S, Floor, Pretended, offer, running

pytestmark = pytest.mark.anyio


async def never(job: Job, output: Output) -> Outcome:
    await asyncio.Event().wait()
    return Outcome()


async def beats(floor: Floor, count: int) -> list[e.GpuHeartbeat]:
    """Return that many heartbeats from now on."""
    source = Beats(floor.connection)
    found: list[e.GpuHeartbeat] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in source.follow(await source.last_seq()):
            found += [each.event for each in batch.records if isinstance(each.event, e.GpuHeartbeat)]
            if len(found) >= count:
                break
    return found


async def test_heartbeats_say_how_long_nothing_moved(floor: Floor) -> None:
    async with running(floor, Pretended(never)):
        await floor.put(CHAT, 1)
        assert [beat.stalled_ms for beat in await beats(floor, 2)] == [0, 0]
        await floor.open("s1")
        await floor.turn("s1", e.TurnStarted)
        stalled = [beat.stalled_ms for beat in await beats(floor, 5)]
        assert stalled == sorted(stalled)
        assert stalled[-1] >= 200
        await floor.release("s1", "closed")


async def test_a_turn_that_speaks_is_not_stuck(floor: Floor) -> None:
    async def speaking(job: Job, output: Output) -> Outcome:
        while True:
            await asyncio.sleep(0.02)
            await output.say("a")

    async with running(floor, Pretended(speaking)):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await floor.turn("s1", e.TurnStarted)
        assert max(beat.stalled_ms for beat in await beats(floor, 6)) < 200


async def test_a_program_may_be_silent(floor: Floor) -> None:
    async with running(floor, Pretended(never), offer(stalls=False)):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await floor.turn("s1", e.TurnStarted)
        assert [beat.stalled_ms for beat in await beats(floor, 3)] == [0, 0, 0]


def test_every_sign_of_any_turn_counts() -> None:
    now = [0.0]
    stall = Stall(lambda: now[0])
    assert stall.ms == 0
    with stall.running():
        now[0] = 5.0
        assert stall.ms == 5000
        with stall.running():
            assert stall.ms == 0
            now[0] = 7.0
            assert stall.ms == 2000
            stall.moved()
            assert stall.ms == 0
            now[0] = 8.0
        assert stall.ms == 0
        now[0] = 9.5
        assert stall.ms == 1500
    assert stall.ms == 0


async def test_a_runner_that_counts_as_stuck_ends_without_waiting_for_its_engine(floor: Floor) -> None:
    told: list[str] = []
    work = Pretended(never)
    async with running(floor, work, on_stuck=lambda: told.append("stuck")) as (_, serving):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await floor.turn("s1", e.TurnStarted)
        await floor.lose("another", "stuck")  # not this life
        await floor.lose("i1", "stuck")
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(serving, 5)
        assert raised.group_contains(EngineError, match="no turn moved")
        assert (told, work.closed) == (["stuck"], False)


def hanging(url: str, said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "tests.runners.hanging", url], stdout=out, stderr=out)


async def test_its_process_ends_whatever_hangs_in_it(
    floor: Floor, nats_server: NatsServer, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    process = hanging(nats_server.url, said)
    try:
        incarnation = await floor.joined()
        await floor.ready(await floor.assign(CHAT, 1, incarnation))
        await floor.open("s1")
        await floor.turn("s1", e.TurnStarted)
        begun = time.monotonic()
        await floor.lose(incarnation, "stuck")
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 1, said.read_text()
        assert time.monotonic() - begun < 5
        assert "given_up" in said.read_text()
    finally:
        process.kill()
        process.wait()
