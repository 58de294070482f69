"""The whole floor under load: admissions a second on 1,000 simulated GPUs, and how long failures last."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec

from helix_es.core import events as e
from helix_es.core.errors import Conflict, Unavailable
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from tests.conftest import NatsServer
from tests.e2e.shop import HELIX

GPUS, SLOTS = 1_000, 8
OFFERED = 330  # sessions a second: the promise is 300
LOADED_S, HALF_S = 15.0, 10.0
SETTLE_S = 3.0  # of a run, before it is measured
READY_S = 120.0
MODEL = "mistral"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the floor did."""

    admissions: float
    """A second, while more were offered."""
    half_p50_ms: float
    half_p99_ms: float
    """From `queued` to `admitted`, by the log's own clock, at half of what was promised."""
    sync: str


class Follower:
    """The log as it grows: when what happened to which session."""

    def __init__(self, log: JetStreamLog) -> None:
        self._log = log
        self.ready: set[str] = set()
        self.queued_ms: dict[str, int] = {}
        self.admitted_ms: dict[str, int] = {}
        self.started: list[tuple[str, str, int, float]] = []
        self.completed: dict[tuple[str, int], int] = {}
        self.fresh: list[tuple[str, int]] = []
        """Sessions that were answered since somebody looked, with the fence."""
        self.bound: dict[str, str] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async for batch in self._log.follow(0):
            for record in batch.records:
                self._take(record)
            self._changed.set()
            self._changed = asyncio.Event()

    def _take(self, record: e.Recorded) -> None:
        match record.event:
            case e.GpuReady(gpu=gpu):
                self.ready.add(gpu)
            case e.TurnQueued(session=session):
                self.queued_ms[session] = record.at_ms
            case e.TurnAdmitted(session=session):
                self.admitted_ms[session] = record.at_ms
            case e.TurnStarted(session=session, gpu=gpu, turn=turn):
                self.started.append((session, gpu, turn, time.perf_counter()))
                self.bound[session] = gpu
            case e.TurnCompleted(session=session, turn=turn):
                self.completed[session, turn] = record.seq
                self.fresh.append((session, record.seq))
            case _:
                pass

    async def until(self, good: object, seconds: float) -> None:
        assert callable(good)
        async with asyncio.timeout(seconds):
            while not good():
                await self._changed.wait()


@contextmanager
def process(*words: str, server: NatsServer, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of helix against `server`; it is ended with -9."""
    with output.open("ab") as out:
        made = subprocess.Popen(
            [*HELIX, *words, "--nats", server.url], stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield made
    finally:
        made.kill()
        made.wait()


def simulated(count: int, prefix: str, *more: str) -> list[str]:
    """Return the command of simulated GPUs that answer at once."""
    quick = ["--first-token-ms", "0", "--tokens-per-s", "1000", "--load-ms", "10", "--no-deltas"]
    about = ["--model", MODEL, "--kind", "a100-80", "--count", str(count), "--slots", str(SLOTS)]
    return ["runner", "simulated", *about, "--gpu-prefix", prefix, *quick, *more]


@asynccontextmanager
async def followed(server: NatsServer) -> AsyncIterator[tuple[JetStreamLog, Follower, Connection]]:
    """Give the log and somebody who follows it, once the scheduler has made the streams."""
    connection = await connect(NatsSettings(url=server.url))
    log = JetStreamLog(connection)
    while True:
        try:
            await log.last_seq()
            break
        except Unavailable:  # the scheduler has not made it yet
            await asyncio.sleep(0.05)
    follower = Follower(log)
    following = asyncio.create_task(follower.run())
    try:
        yield log, follower, connection
    finally:
        following.cancel()
        await connection.close()


async def come_in(log: JetStreamLog, session: str, tokens: int = 1) -> None:
    """Open a session as the API does."""
    about = {"session": e.SessionId(session), "owner": f"o{hash(session) % 50}", "mode": "create"}
    about |= {"type": "text", "model": MODEL}
    created = e.SessionCreated(**about, params={"max_tokens": tokens})  # type: ignore[arg-type]
    seq = await log.append(created, expected_seq=0, key=f"c{session}")
    queued = e.TurnQueued(**about, turn=1, prompt="Hello")  # type: ignore[arg-type]
    await log.append(queued, expected_seq=seq, key=f"q{session}")


async def _leave(log: JetStreamLog, session: str, seq: int) -> None:
    with suppress(Conflict):  # released meanwhile
        await log.append(e.SessionClosed(session=e.SessionId(session)), expected_seq=seq, key=f"x{session}")


async def offer(log: JetStreamLog, follower: Follower, name: str, rate: float, seconds: float) -> list[str]:
    """Bring `rate` sessions a second, each closed when it is answered; return their names."""
    names: list[str] = []
    async with asyncio.TaskGroup() as group:
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            while len(names) < passed * rate:
                names.append(f"{name}{len(names)}")
                group.create_task(come_in(log, names[-1]))
            fresh, follower.fresh = follower.fresh, []
            for session, seq in fresh:
                group.create_task(_leave(log, session, seq))
            await asyncio.sleep(0.005)
    return names


async def loaded(sync: str) -> Load:
    """Measure admissions on the whole floor."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats", sync_interval=sync)
        server.start()
        out = Path(folder) / "out.log"
        try:
            with process("scheduler", server=server, output=out):
                async with followed(server) as (log, follower, _):
                    with process(*simulated(GPUS, "sim"), server=server, output=out):
                        await follower.until(lambda: len(follower.ready) >= GPUS, READY_S)
                        await offer(log, follower, "w", 50, SETTLE_S)
                        before, begun = len(follower.started), time.perf_counter()
                        await offer(log, follower, "l", OFFERED, LOADED_S)
                        rate = (len(follower.started) - before) / (time.perf_counter() - begun)
                        await follower.until(
                            lambda: len(follower.started) >= len(follower.queued_ms), READY_S
                        )
                        half = await offer(log, follower, "h", 150, HALF_S)
                        await follower.until(lambda: all(n in follower.admitted_ms for n in half), READY_S)
        finally:
            server.close()
        waits = [follower.admitted_ms[name] - follower.queued_ms[name] for name in half]
        return Load(
            admissions=rate,
            half_p50_ms=statistics.median(waits),
            half_p99_ms=statistics.quantiles(waits, n=100)[98],
            sync=sync,
        )


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """How long failures last, seconds."""

    runner_s: float
    """From kill -9 of its runner to the started next turn of a session that was bound to it."""
    scheduler_s: float
    """From kill -9 of the acting scheduler to the next admission."""


async def recovered() -> Recovery:
    """Kill a runner under a bound session, then the acting scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats")
        server.start()
        out = Path(folder) / "out.log"
        try:
            with process("scheduler", server=server, output=out) as acting:
                async with followed(server) as (log, follower, _):
                    with (
                        process(*simulated(1, "a"), server=server, output=out) as first,
                        process(*simulated(1, "b"), server=server, output=out) as second,
                        process("scheduler", server=server, output=out),
                    ):
                        await follower.until(lambda: len(follower.ready) == 2, READY_S)
                        await come_in(log, "s")
                        await follower.until(lambda: ("s", 1) in follower.completed, READY_S)
                        runner = first if follower.bound["s"] == "a-0" else second
                        runner_s = await _killed_runner(log, follower, runner)
                        scheduler_s = await _killed_scheduler(log, follower, acting)
        finally:
            server.close()
    return Recovery(runner_s=runner_s, scheduler_s=scheduler_s)


async def _killed_runner(log: JetStreamLog, follower: Follower, runner: subprocess.Popen[bytes]) -> float:
    os.kill(runner.pid, signal.SIGKILL)
    begun = time.perf_counter()
    after = follower.completed["s", 1]
    more = e.TurnContinued(
        session=e.SessionId("s"),
        turn=2,
        type="text",
        model=MODEL,
        gpu=e.GpuId(follower.bound["s"]),
        after_seq=after,
        prompt="More",
    )
    await log.append(more, expected_seq=after, key="more")
    await follower.until(lambda: ("s", 2) in follower.completed, READY_S)
    return time.perf_counter() - begun


async def _killed_scheduler(log: JetStreamLog, follower: Follower, acting: subprocess.Popen[bytes]) -> float:
    os.kill(acting.pid, signal.SIGKILL)
    begun = time.perf_counter()
    await come_in(log, "t")
    await follower.until(lambda: "t" in follower.admitted_ms, READY_S)
    return time.perf_counter() - begun


if __name__ == "__main__":  # one part alone, for whoever works on it
    if sys.argv[1:2] == ["recovered"]:
        print(asyncio.run(recovered()))
    else:
        print(asyncio.run(loaded(sys.argv[1] if len(sys.argv) > 1 else "always")))
