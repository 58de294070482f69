"""A closed loop of clients and what it measured; the standard library only, since the peers' venv runs it too."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

WARM_UP = 50  # tasks before the clock starts, at the same concurrency
TASK_S = 20.0  # a task without an answer for so long has failed
MOST_S = 25.0  # of one measurement: clients begin nothing new after it, so that a slow system ends too
One = Callable[[int], Awaitable[None]]
"""Does one task for the client with that number, and returns when it holds the answer."""


class Loop(NamedTuple):
    """How many clients do how many tasks, each beginning the next as soon as it has its answer."""

    concurrent: int
    tasks: int
    most_s: float = MOST_S


PLAN = (Loop(concurrent=1, tasks=500), Loop(concurrent=64, tasks=1_000))


class Tally:
    """What the clients of one loop saw."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self.failed = 0
        self.error = ""
        self.begun = time.perf_counter()

    async def count(self, one: One, client: int) -> None:
        """Do one task and note how it went; whatever it raises is a failed task."""
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(TASK_S):
                await one(client)
        except Exception as error:
            self.failed += 1
            self.error = self.error or described(error)
        else:
            self.took_s.append(time.perf_counter() - sent)


def described(error: BaseException) -> str:
    """Return the type and the first line of the innermost cause: wrappers say nothing of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0][:120]}" if words else type(error).__name__


async def drive(one: One, loop: Loop) -> Tally:
    """Run the loop to its end, or until `most_s` seconds have passed."""
    tally = Tally()
    left = iter(range(loop.tasks))
    await asyncio.gather(*(_client(one, number, left, loop, tally) for number in range(loop.concurrent)))
    return tally


async def _client(one: One, number: int, left: Iterator[int], loop: Loop, tally: Tally) -> None:
    for _ in left:
        if time.perf_counter() - tally.begun > loop.most_s:
            return
        await tally.count(one, number)


def percentile_ms(took_s: list[float], hundredth: int) -> float:
    """Return a percentile in milliseconds."""
    return statistics.quantiles(took_s, n=100, method="inclusive")[hundredth - 1] * 1000


async def measure(how: str, one: One, plan: Sequence[Loop] = PLAN) -> None:
    """Measure each loop of `plan` and say what was found, a JSON line each."""
    for loop in plan:
        await drive(one, Loop(loop.concurrent, max(WARM_UP, loop.concurrent), loop.most_s / 3))
        tally = await drive(one, loop)
        seconds = time.perf_counter() - tally.begun
        enough = len(tally.took_s) > 1
        say(
            measured="dispatch",
            how=how,
            concurrent=loop.concurrent,
            tasks=len(tally.took_s),
            failed=tally.failed,
            p50_ms=percentile_ms(tally.took_s, 50) if enough else None,
            p99_ms=percentile_ms(tally.took_s, 99) if enough else None,
            per_s=len(tally.took_s) / seconds,
            error=tally.error,
        )


def say(**found: object) -> None:
    """Print one JSON line for the driver."""
    print(json.dumps(found), flush=True)
