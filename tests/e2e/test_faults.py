"""kill -9, in the middle of an answer, of whatever there is: the answer arrives, once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from helix_es.core import events as e
from tests.e2e.shop import ENDS, Client, Event, Shop, facts, joined, tags

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(300)]

STORY = "Write a long story about a lighthouse."


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """Two runners of four slots each, one thread each."""
    running = Shop(tmp_path_factory.mktemp("pair"), runners="text:smollm2*2", args=("--slots", "4"))
    try:
        await asyncio.to_thread(running.start)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


class Watch:
    """A client that follows one turn, whatever breaks, and can be asked how far it is."""

    def __init__(self, client: Client, sid: str, turn: int = 1) -> None:
        self.text = ""
        self.events: list[Event] = []
        self._spoke = asyncio.Event()
        self._task = asyncio.create_task(self._follow(client, sid, turn))

    async def _follow(self, client: Client, sid: str, turn: int) -> None:
        async for event in client.follow(sid, turn, seconds=200):
            self.events.append(event)
            self.text = joined(self.text, event)
            if sum(seen.name == "delta" for seen in self.events) >= 5:
                self._spoke.set()

    async def speaking(self) -> None:
        """Wait until the answer is under way."""
        await asyncio.wait_for(self._spoke.wait(), 60)

    async def ended(self) -> Event:
        """Wait for the end and return its event."""
        await self._task
        assert self.events[-1].name in ENDS
        return self.events[-1]


async def runner_of(pair: Shop, client: Client, sid: str) -> str:
    gpu = (await client.session(sid))["gpu"]
    assert gpu
    return f"runner-{gpu.rsplit('-', 1)[-1]}"


async def all_ready(pair: Shop) -> None:
    await asyncio.to_thread(pair.until, pair.ready, "ready runners")


async def test_a_killed_runner_loses_no_turn_and_no_stream(pair: Shop) -> None:
    async with Client(pair.url) as client:
        sid = (await client.open(STORY, params={"max_tokens": 90}))["session_id"]
        watch = Watch(client, sid)
        await watch.speaking()
        killed = await runner_of(pair, client, sid)
        pair.kill(killed)
        begun = time.monotonic()
        end = await watch.ended()
        assert end.name == "turn.completed"
        turn = end.data["turn"]
        assert turn["attempt"] == 2
        assert watch.text == turn["output"]
        names = tags(await facts(pair.nats_url, f"session.{sid}.>"))
        assert names.count("turn.completed") == 1
        assert names.count("turn.started") == 2
        assert names.count("session.released") == 1
        # the same seed and the same numbers: what the first GPU said is how the second one began
        assert time.monotonic() - begun < 60
    await all_ready(pair)


async def test_a_paused_runner_becomes_a_zombie_whose_late_answer_is_refused(pair: Shop) -> None:
    async with Client(pair.url) as client:
        sid = (await client.open(STORY, params={"max_tokens": 120}))["session_id"]
        watch = Watch(client, sid)
        await watch.speaking()
        paused = await runner_of(pair, client, sid)
        gpu = (await client.session(sid))["gpu"]
        pair.kill(paused, signal.SIGSTOP)
        try:
            end = await watch.ended()
        finally:
            pair.kill(paused, signal.SIGCONT)
        assert end.data["turn"]["attempt"] == 2
        assert end.data["turn"]["gpu"] != gpu
        await all_ready(pair)  # the zombie has noticed, dropped its work and joined anew
        records = await facts(pair.nats_url, f"session.{sid}.>")
        assert tags(records).count("turn.completed") == 1
        assert watch.text == end.data["turn"]["output"]
        lives = [r.event for r in await facts(pair.nats_url, f"gpu.{gpu}.joined")]
        assert isinstance(lives[-1], e.GpuJoined)
        started = [r.event for r in records if isinstance(r.event, e.TurnStarted)]
        assert lives[-1].incarnation != started[0].incarnation


async def test_a_cancel_holds_even_if_the_gpu_dies_before_it_stops(pair: Shop) -> None:
    async with Client(pair.url) as client:
        sid = (await client.open(STORY, params={"max_tokens": 300}))["session_id"]
        watch = Watch(client, sid)
        await watch.speaking()
        killed = await runner_of(pair, client, sid)
        pair.kill(killed, signal.SIGSTOP)
        assert (await client.http.post(f"/sessions/{sid}/turns/1/cancel")).status_code == 202
        pair.kill(killed)
        end = await watch.ended()
        assert end.name == "turn.cancelled"
        assert (await client.session(sid))["turns"][0]["attempt"] == 1
        await client.say(sid, "Say hi.", params={"max_tokens": 3})
        assert (await client.answer(sid, 2))["state"] == "completed"
    await all_ready(pair)


async def test_a_killed_api_is_back_and_its_streams_go_on(pair: Shop) -> None:
    async with Client(pair.url) as client:
        sid = (await client.open(STORY, params={"max_tokens": 60}))["session_id"]
        watch = Watch(client, sid)
        await watch.speaking()
        pair.kill("api")
        end = await watch.ended()
        assert end.name == "turn.completed"
        assert watch.text == end.data["turn"]["output"]
        assert end.data["turn"]["attempt"] == 1, "the runner did not even notice"
        offsets = [(x.data["offset"], len(x.data["text"])) for x in watch.events if x.name == "delta"]
        assert all(a + n == b for (a, n), (b, _) in pairwise(offsets))


async def test_a_killed_scheduler_stops_no_chat_and_is_back_for_the_next(pair: Shop) -> None:
    async with Client(pair.url) as client:
        sid = (await client.open(STORY, params={"max_tokens": 30}))["session_id"]
        watch = Watch(client, sid)
        await watch.speaking()
        pair.kill("scheduler")
        new = (await client.open("Say hi.", params={"max_tokens": 4}))["session_id"]
        assert (await watch.ended()).data["turn"]["attempt"] == 1
        await client.say(sid, "Go on.", params={"max_tokens": 4})
        assert (await client.answer(sid, 2))["state"] == "completed", "continuing needs no scheduler"
        assert (await client.answer(new, seconds=60))["state"] == "completed"


async def test_a_killed_nats_server_loses_nothing_that_was_acknowledged(pair: Shop) -> None:
    async with Client(pair.url) as client:
        opened = [await client.open(STORY, params={"max_tokens": 60}) for _ in range(3)]
        watches = [Watch(client, session["session_id"]) for session in opened]
        for watch in watches:
            await watch.speaking()
        before = await facts(pair.nats_url, "gpu.*.lost")
        pair.kill("nats")
        for watch, session in zip(watches, opened, strict=True):
            end = await watch.ended()
            assert end.name == "turn.completed"
            assert watch.text == end.data["turn"]["output"]
            names = tags(await facts(pair.nats_url, f"session.{session['session_id']}.>"))
            assert names.count("turn.completed") == 1
        assert (await client.say(opened[0]["session_id"], "Go on.", params={"max_tokens": 4}))["turn"] == 2
        assert (await client.answer(opened[0]["session_id"], 2))["state"] == "completed"
        lost = await facts(pair.nats_url, "gpu.*.lost")
        assert len(lost) == len(before), "a restart of the broker is not the end of the fleet"
    await all_ready(pair)


async def test_everything_killed_at_once_goes_on_from_its_folder(tmp_path: Path) -> None:
    first = Shop(tmp_path, args=("--slots", "2"))
    try:
        await asyncio.to_thread(first.start)
        async with Client(first.url) as client:
            sid = (await client.open("My name is Zoe. Greet me.", params={"max_tokens": 16}))["session_id"]
            await client.answer(sid)
            open_sid = (await client.open(STORY, params={"max_tokens": 200}))["session_id"]
            async for event in client.events(open_sid, 1):
                if event.name == "delta":
                    break
        names = ("runner-0", "api", "scheduler", "nats")
        pids = [first.pid(name) for name in names]
        for pid in (first.process.pid, *pids):
            os.kill(pid, signal.SIGKILL)
    finally:
        first.stop()
    second = Shop(tmp_path, args=("--slots", "2"))
    try:
        await asyncio.to_thread(second.start)
        async with Client(second.url) as client:
            await client.http.post(f"/sessions/{open_sid}/turns/1/cancel")
            assert (await client.answer(open_sid))["state"] == "cancelled"
            await client.say(sid, "What is my name?", params={"max_tokens": 16})
            assert "Zoe" in (await client.answer(sid, 2))["output"]
        assert second.stop() == 0
    finally:
        second.stop()


async def test_a_killed_supervisor_leaves_no_server_behind_that_would_share_the_log(tmp_path: Path) -> None:
    first = Shop(tmp_path, runners="")
    try:
        await asyncio.to_thread(first.start)
        nats_pid = first.pid("nats")
    finally:
        first.process.kill()
        first.stop()
    second = Shop(tmp_path, runners="")
    try:
        await asyncio.to_thread(second.start)
        assert not psutil.pid_exists(nats_pid) or psutil.Process(nats_pid).status() == psutil.STATUS_ZOMBIE
    finally:
        second.stop()
