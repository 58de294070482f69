"""One simulated GPU: who holds a slot, what it is assigned, who is being started; believes only what is in the log."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from helix_es.core import events as e
from helix_es.jetstream.tasks import TaskEvent
from helix_runners.simulated.attempt import Attempt
from helix_runners.stall import Stall


class Known(NamedTuple):
    """What was read of a session when it was seated."""

    owner: str
    params: dict[str, Any]


@dataclass(eq=False)
class Seat:
    """A session that holds a slot."""

    session: str
    seated_seq: int
    """Sequence of the `started` that seated it."""
    known: Known | None = None
    """None: the log must be read."""
    held_tokens: int = 0
    """Of its conversation, as if they were in the cache."""
    attempt: Attempt | None = None
    """What runs of it."""


@dataclass(eq=False)
class Start:
    """A `started` on its way to the log, and what was heard of the session meanwhile."""

    settled: asyncio.Future[None]
    released_seq: int = 0
    cancelling_turn: int = 0


@dataclass(eq=False)
class SimulatedGpu:
    """A GPU of this process."""

    gpu: e.GpuId
    incarnation: str = ""
    fence: int = 0
    """Sequence of the last fact about it that we know of."""
    workload: e.Workload | None = None
    """What it is assigned."""
    loaded: str | None = None
    slots: int = 0
    ready: bool = False
    """Takes tasks."""
    leaving: bool = False
    gone: bool = False
    """Has left for good."""
    seats: dict[str, Seat] = field(default_factory=dict)
    starting: dict[str, Start] = field(default_factory=dict)
    assigned: deque[e.Recorded] = field(default_factory=deque)
    """Assignments that were not answered yet."""
    answering: bool = False
    """Somebody is at work on `assigned`."""
    stall: Stall = field(default_factory=Stall)

    @property
    def taken(self) -> int:
        """Sessions that hold a slot, or will."""
        return len(self.seats) + sum(session not in self.seats for session in self.starting)

    @property
    def room(self) -> bool:
        return self.ready and self.taken < self.slots

    @property
    def load(self) -> int:
        """0 idle to 9 nearly full, as the broker's priorities want it."""
        return min(9, 10 * self.taken // self.slots) if self.slots else 9

    def accepts(self, event: TaskEvent) -> bool:
        """Whether a task may be started here now."""
        if not self.ready:
            return False
        if isinstance(event, e.TurnContinued):
            return True
        fits = self.workload == e.Workload(event.mode, event.type, event.model)
        return fits and (event.session in self.seats or self.taken < self.slots)

    def begin(self, session: str) -> Start:
        """Set a slot aside for a session while its `started` is on its way."""
        start = self.starting[session] = Start(asyncio.get_running_loop().create_future())
        return start

    def settle(self, session: str, start: Start) -> None:
        """The `started` of a session is in the log, or never will be."""
        if self.starting.get(session) is start:
            del self.starting[session]
        if not start.settled.done():
            start.settled.set_result(None)

    def seat(self, session: str, seq: int) -> Seat:
        """Give a slot to a session that was started by a task from the door."""
        before = self.seats.get(session)
        if before is not None and before.attempt is not None:  # its release was not heard yet
            before.attempt.drop()
        seat = self.seats[session] = Seat(session, seq)
        return seat

    def released(self, session: str, seq: int) -> None:
        """Free a slot, unless the session was seated again since; what runs of it is another's now."""
        start = self.starting.get(session)
        if start is not None:
            start.released_seq = seq
        seat = self.seats.get(session)
        if seat is None or seat.seated_seq > seq:
            return
        del self.seats[session]
        if seat.attempt is not None:
            seat.attempt.drop()

    def cancelling(self, session: str, turn: int) -> None:
        """Somebody wants a running turn to stop."""
        start = self.starting.get(session)
        if start is not None:
            start.cancelling_turn = turn
        seat = self.seats.get(session)
        if seat is not None and seat.attempt is not None and seat.attempt.event.turn == turn:
            seat.attempt.stop()

    def yielding(self, session: str, turn: int, attempt: int) -> None:
        """A fine-tune must make a checkpoint at its next step."""
        seat = self.seats.get(session)
        running = None if seat is None else seat.attempt
        if running is not None and (running.event.turn, running.event.attempt) == (turn, attempt):
            running.give_way()

    def give_up(self) -> None:
        """Nothing of this life counts any more: the scheduler declared it lost."""
        for seat in self.seats.values():
            if seat.attempt is not None:
                seat.attempt.drop()
        self.seats.clear()
        self.starting.clear()
        self.assigned.clear()
        self.ready = self.leaving = False
        self.workload, self.slots = None, 0
