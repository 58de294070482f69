"""A stretch of the log as frames, so many times as fast as it was; idle time is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from helix_es.core.errors import Unavailable
from helix_es.core.events import Recorded
from helix_es.core.occupancy import Occupancy
from helix_es.core.timeline import NO_END, Timeline

FRAME_S = 0.05  # twenty a second
LIVE_S = 0.5  # between looks at a log that nothing is left of but what comes
IDLE_S = 2.0  # on the wall: a longer stretch without facts is cut
LEAD_S = 0.5  # on the wall: of the stretch that is cut, what is still shown


class Clock(Protocol):
    """The wall."""

    def s(self) -> float:
        """Return seconds that only ever go on."""

    def now_ms(self) -> int:
        """Return Unix ms."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Wall:
    """The real one."""

    def s(self) -> float:
        return time.monotonic()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Counts(NamedTuple):
    """The shop in five numbers."""

    gpus: int
    ready: int
    slots: int
    held: int
    waiting: int


class Happened(NamedTuple):
    """A fact, and the shop after it."""

    record: Recorded
    counts: Counts


class Frame(NamedTuple):
    """The shop at an instant, and what happened since the frame before."""

    state: Occupancy
    """Good until the next frame."""
    happened: list[Happened]
    cut_ms: int = 0
    """Idle time before it that was left out."""
    trouble: str = ""
    """Why nothing newer is known, for now."""


class Stretch(NamedTuple):
    """What is to be played."""

    end_ms: int = NO_END
    end_seq: int = NO_END
    speed: float = 60.0
    live: bool = False
    """It goes on at its end, and then no faster than time."""


def counts(state: Occupancy) -> Counts:
    """Return `state` in numbers; slots are those of GPUs that are ready."""
    capacities = state.door.capacities.values()
    return Counts(
        gpus=len(state.gpus),
        ready=sum(gpu.state == "ready" for gpu in state.gpus.values()),
        slots=sum(each.slots for each in capacities),
        held=sum(each.bound for each in capacities),
        waiting=sum(len(queue) for queue in state.door.queues.values()),
    )


class Film:
    """Plays a timeline on. `note` is what the timeline's `watch` must be."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._happened: list[Happened] = []
        self._base_ms, self._base_s = 0, 0.0
        """An instant of the film, Unix ms, and when on the wall it was shown."""

    def note(self, record: Recorded, state: Occupancy) -> None:
        """Something happened, and led to `state`."""
        self._happened.append(Happened(record, counts(state)))

    async def frames(self, timeline: Timeline, first: Occupancy, stretch: Stretch) -> AsyncIterator[Frame]:
        """Yield the frame `first`, to which `timeline` was sought, and those after it, each when it is due."""
        self._happened.clear()
        self._base_ms, self._base_s = first.now_ms, self._clock.s()
        state, at_ms, wait_s = first, first.now_ms, FRAME_S
        first_ms = at_ms
        yield Frame(state, [])
        while True:
            await self._clock.sleep(wait_s)
            try:
                next_ms = await timeline.next_ms()
                if next_ms is None and not stretch.live:
                    return
                due_ms, cut_ms, wait_s = self._due(stretch, next_ms)
                at_ms = max(at_ms, due_ms)  # this machine's clock may be behind the server's
                state = await timeline.at_ms(at_ms, upto_seq=stretch.end_seq)
                if not stretch.live and await timeline.next_ms() is None:
                    state.now_ms = max(
                        first_ms, state.folded_ms
                    )  # a recording says nothing of what came after it
            except Unavailable as error:
                if not stretch.live:
                    raise
                wait_s = LIVE_S
                yield Frame(state, [], trouble=f"{error}; trying again")
                continue
            happened, self._happened = self._happened, []
            yield Frame(state, happened, cut_ms)
            if at_ms >= stretch.end_ms or state.seq >= stretch.end_seq:
                return

    def _due(self, stretch: Stretch, next_ms: int | None) -> tuple[int, int, float]:
        """Return what is to be shown now, Unix ms, the idle time that is cut before it, and when to look again, s."""
        now_s, now_ms = self._clock.s(), self._clock.now_ms()
        second_ms = 1000 * stretch.speed  # of the film, on the wall
        at_ms, cut_ms, wait_s = self._base_ms + round((now_s - self._base_s) * second_ms), 0, FRAME_S
        idle_ms = 0 if next_ms is None else min(next_ms, stretch.end_ms) - at_ms
        if idle_ms > IDLE_S * second_ms:
            cut_ms = idle_ms - round(LEAD_S * second_ms)
            at_ms += cut_ms
            self._base_ms, self._base_s = at_ms, now_s
        at_ms = min(at_ms, stretch.end_ms)
        if stretch.live and at_ms >= now_ms:
            at_ms, wait_s = now_ms, LIVE_S
            self._base_ms, self._base_s = at_ms, now_s
        return at_ms, cut_ms, wait_s
