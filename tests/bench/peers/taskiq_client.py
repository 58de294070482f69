"""taskiq-nats' side: tasks through its pull broker, results from its object store, workers as its own CLI runs them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import nats
from nats.js.api import DiscardPolicy, StreamConfig
from taskiq import AsyncTaskiqTask

from tests.bench.peers.killing import kill_one
from tests.bench.peers.load import PLAN, TASK_S, Loop, drive, measure, say
from tests.bench.peers.taskiq_app import ACK_WAIT_S, MARKS, URL, broker, nothing, slow

LOOK_S = {1: 0.001, 64: 0.1}
"""How often a client looks for its result, by how many clients there are: each the fastest found here."""
DEFAULT_LOOK_S = 0.2  # the library's own; hence fewer tasks of one client
DEFAULT_PLAN = (Loop(concurrent=1, tasks=50), Loop(concurrent=64, tasks=1_000))
AT_ONCE = 128  # tasks of one worker
CONSUMERS = 100_000
WARM = Loop(concurrent=4, tasks=50)
KILLED_LOOK_S = 0.02
HOW = {
    "defaults": "as it comes",
    "dispatch": "tuned",
    "one-of-two": "one of two",
    "only-one": "the only one",
}


async def raise_limit() -> None:
    """Make the bucket of results as the backend would, but allow as many consumers as Helix allows its streams."""
    connection = await nats.connect(URL)
    bucket = StreamConfig(
        name="OBJ_taskiq_results",
        subjects=["$O.taskiq_results.C.>", "$O.taskiq_results.M.>"],
        max_consumers=CONSUMERS,
        allow_rollup_hdrs=True,
        allow_direct=True,
        discard=DiscardPolicy.NEW,
    )
    await connection.jetstream().add_stream(bucket)
    await connection.close()


@asynccontextmanager
async def workers(count: int) -> AsyncIterator[None]:
    """Run `count` worker processes under taskiq's own manager, which starts them again when they die."""
    command = [sys.executable, "-m", "taskiq", "worker", "tests.bench.peers.taskiq_app:broker"]
    options = ["--workers", str(count), "--max-async-tasks", str(AT_ONCE), "--log-level", "WARNING"]
    manager = await asyncio.create_subprocess_exec(*command, *options, stdout=sys.stderr)
    try:
        await (await nothing.kiq()).wait_result(check_interval=0.1, timeout=TASK_S)
        yield
    finally:
        manager.terminate()
        await asyncio.wait_for(manager.wait(), 20)


class Client:
    """Whoever wants an answer, and looks for it every `look_s` seconds."""

    def __init__(self, look_s: float) -> None:
        self._look_s = look_s

    async def idle(self, _client: int) -> None:
        await self._answered(await nothing.kiq())

    async def working(self, task: str) -> None:
        await self._answered(await slow.kiq(task))

    async def _answered(self, task: AsyncTaskiqTask[str]) -> None:
        result = await task.wait_result(check_interval=self._look_s)
        result.raise_for_error()


async def run(part: str) -> None:
    """Measure one part; each has a server of its own."""
    if part != "defaults":
        await raise_limit()
    await broker.startup()
    try:
        if part == "defaults":
            async with workers(1):
                await measure(HOW[part], Client(DEFAULT_LOOK_S).idle, DEFAULT_PLAN)
        elif part == "dispatch":
            async with workers(1):
                for loop in PLAN:
                    await measure(HOW[part], Client(LOOK_S[loop.concurrent]).idle, (loop,))
        else:
            async with workers(2 if part == "one-of-two" else 1):
                client = Client(KILLED_LOOK_S)
                await drive(client.idle, WARM)
                await kill_one(f"{HOW[part]}, ack_wait {ACK_WAIT_S:.0f} s", client.working, MARKS)
    finally:
        await broker.shutdown()


if __name__ == "__main__":
    say(measured="version", version=version("taskiq-nats"))
    asyncio.run(run(sys.argv[1]))
