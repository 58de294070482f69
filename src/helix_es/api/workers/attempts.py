"""The attempt that a task id speaks of, held against the log each time it is used."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from helix_es.api.workers.taskid import TaskId, not_found, stale
from helix_es.core import events as e
from helix_es.core.floor import Seat
from helix_es.core.history import Session, fold
from helix_es.core.subjects import session_filter
from helix_es.log import Log
from helix_es.replica import Replica
from helix_es.turnlog import runs

RUNNING = ("running", "cancelling")
STALE_READS = 5  # a replica of the log may not have yet what another API stored a moment ago
STALE_READ_S = 0.02


@dataclass
class Attempt:
    """A running attempt of a worker's; its fence moves with what is appended."""

    task: TaskId
    fence: int
    cancelling: bool


@dataclass
class Looked:
    """All that the log has of a task: never less than its `started`."""

    task: TaskId
    records: list[e.Recorded]
    session: Session

    @property
    def attempt(self) -> Attempt | None:
        """The attempt if it runs, else None."""
        task = self.task
        if not runs(self.session, task.turn, task.attempt, task.worker):
            return None
        return Attempt(task, self.session.last_seq, self.session.phase == "cancelling")

    @property
    def end(self) -> e.AnyEvent | None:
        """The fact that ended it, or None: it runs, or was taken away."""
        ends = (e.TurnCompleted, e.TurnFailed, e.TurnCancelled)
        for record in self.records:
            if isinstance(record.event, ends) and _about(record.event) == (self.task.turn, self.task.attempt):
                return record.event
        return None

    @property
    def continued(self) -> bool:
        """Whether the worker had the conversation before."""
        return any(
            isinstance(record.event, e.TurnContinued)
            and _about(record.event) == (self.task.turn, self.task.attempt)
            for record in self.records
        )


def _about(event: e.TurnContinued | e.TurnCompleted | e.TurnFailed | e.TurnCancelled) -> tuple[int, int]:
    return event.turn, event.attempt


def task_of(seat: Seat) -> TaskId:
    """Return the id of the task whose turn runs in `seat`."""
    return TaskId(seat.session, seat.turn, seat.attempt, seat.gpu or e.NO_GPU, seat.incarnation)


class Attempts:
    """Finds attempts by their ids."""

    def __init__(self, source: Log, replica: Replica) -> None:
        self._log = source
        self._replica = replica

    async def running(self, task: TaskId) -> Attempt:
        """Return the attempt. Raises Rejected: stale_attempt, or task_not_found if nobody was given that id."""
        seat = self._replica.state.seats.get(task.session)
        if seat is not None and seat.phase in RUNNING and task_of(seat) == task:
            return Attempt(task, seat.last_seq, seat.phase == "cancelling")
        attempt = (await self.look(task)).attempt
        if attempt is None:
            raise stale(task)
        return attempt

    async def look(self, task: TaskId) -> Looked:
        """Return what the log has of the task. Raises Rejected("task_not_found") if nobody was given it."""
        for again in range(STALE_READS):
            if again:
                await asyncio.sleep(STALE_READ_S)
            records = await self._log.history(session_filter(task.session), fresh=True)
            if any(_starts(record.event, task) for record in records):
                return Looked(task, records, fold(task.session, records))
        raise not_found(task)


def _starts(event: e.AnyEvent | None, task: TaskId) -> bool:
    return isinstance(event, e.TurnStarted) and task == TaskId(
        event.session, event.turn, event.attempt, event.gpu, event.incarnation
    )
