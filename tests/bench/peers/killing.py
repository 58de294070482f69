"""kill -9 of a worker while tasks run on it, and what becomes of them; the standard library only."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench.peers.load import described, say

WORK_S = 1.0  # of a task, so that it is in progress when its worker dies
TASKS = 20
BEGUN_S = 30.0  # all tasks must have begun within it
ANSWERED_S = 60.0  # after the kill; what has no answer then is lost
AGAIN_S = 0.05  # the client waits so long before it sends again what failed
POLL_S = 0.02

Do = Callable[[str], Awaitable[None]]
"""Does the named task, which takes WORK_S, and returns when it is answered; raises if the system says it failed."""


class Fate(NamedTuple):
    """What its client saw of one task."""

    failed: int
    """How often the system answered with an error; each time it was sent again."""
    error: str
    failed_at: float | None
    """When the first error came, on the clock of `time.monotonic`."""
    answered_at: float | None
    """When, on the same clock; None: never."""


def mark(marks: Path, task: str) -> None:
    """Note that this process begins `task`: one small append, so lines of several processes do not mix."""
    with marks.open("a") as file:
        file.write(f"{task} {os.getpid()}\n")


def begun(marks: Path) -> dict[str, int]:
    """Return the process that began each task first."""
    first: dict[str, int] = {}
    for line in marks.read_text().splitlines() if marks.exists() else []:
        task, _, pid = line.partition(" ")
        first.setdefault(task, int(pid))
    return first


async def kill_one(how: str, do: Do, marks: Path) -> None:
    """Begin tasks, kill the worker that has most of them, and say what became of those it had, as a JSON line."""
    tasks = [f"{how.replace(' ', '-')}-{number}" for number in range(TASKS)]
    clients = {task: asyncio.create_task(_answer(do, task)) for task in tasks}
    deadline = time.monotonic() + BEGUN_S
    while not set(tasks) <= set(begun(marks)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(begun(marks))} of {TASKS} tasks had begun after {BEGUN_S} s")
        await asyncio.sleep(POLL_S)
    running = {task: begun(marks)[task] for task in tasks if not clients[task].done()}
    victim, _ = Counter(running.values()).most_common(1)[0]
    os.kill(victim, signal.SIGKILL)
    killed_at = time.monotonic()
    fates = dict(zip(tasks, await asyncio.gather(*clients.values()), strict=True))
    held = [fates[task] for task, pid in running.items() if pid == victim]
    others = [fates[task] for task in tasks if running.get(task) != victim]
    _tell(how, held, others, killed_at)


def _tell(how: str, held: list[Fate], others: list[Fate], killed_at: float) -> None:
    told = [fate.failed_at - killed_at for fate in held if fate.failed_at is not None]
    again = sorted(fate.answered_at - killed_at for fate in held if fate.answered_at is not None)
    say(
        measured="recovery",
        how=how,
        in_flight=len(held),
        failed=len(told),
        told_s=max(told, default=None),
        answered=len(again),
        first_s=again[0] if again else None,
        last_s=again[-1] if again else None,
        resent=sum(fate.failed for fate in held),
        others_failed=sum(fate.failed > 0 for fate in others),
        error=next((fate.error for fate in held if fate.error), ""),
    )


async def _answer(do: Do, task: str) -> Fate:
    """Send `task` until it is answered, as a client that must have its answer does."""
    failed, error, failed_at = 0, "", None
    try:
        async with asyncio.timeout(BEGUN_S + ANSWERED_S):
            while True:
                try:
                    await do(task)
                    return Fate(failed, error, failed_at, time.monotonic())
                except Exception as raised:
                    failed += 1
                    error = error or described(raised)
                    failed_at = failed_at or time.monotonic()
                await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        return Fate(failed, error, failed_at, None)
