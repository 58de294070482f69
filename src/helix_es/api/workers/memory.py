"""The conversations that were given out here, kept as the fold goes on: a next turn then needs no read of the log."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack

from helix_es.core import events as e
from helix_es.core.history import Session, evolve
from helix_es.core.subjects import subject_of
from helix_es.jetstream.tasks import Task
from helix_es.replica import Replica

MOST = 1000  # sessions; a worker at another replica comes back to a read of the log, nothing worse


class _Kept:
    """A session, and the subscription that keeps it up to date."""

    def __init__(self, state: Session) -> None:
        self.state = state
        self.over = False
        self.subscription = ExitStack()

    def hear(self, record: e.Recorded) -> None:
        if record.seq > self.state.last_seq:
            self.state = evolve(self.state, record)
            self.over = isinstance(record.event, e.SessionReleased)


class Memory:
    """Sessions that workers hold. What is forgotten is read from the log."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def keep(self, state: Session) -> None:
        """Keep a session up to `state`, if our fold knows of nothing newer."""
        self.forget(state.session)
        seat = self._replica.state.seats.get(state.session)
        if seat is None or seat.last_seq > state.last_seq:
            return  # what was folded already does not come again
        kept = self._kept[state.session] = _Kept(state)
        kept.subscription.enter_context(self._replica.subscription(state.session, kept.hear))
        while len(self._kept) > MOST or next(iter(self._kept.values())).over:
            self.forget(next(iter(self._kept)))
            if not self._kept:
                return

    def forget(self, session: str) -> None:
        """Drop a session; harmless if there is nothing."""
        kept = self._kept.pop(session, None)
        if kept is not None:
            kept.subscription.close()

    def recall(self, task: Task) -> Session | None:
        """Return the session up to the turn of `task`, or None if the log must be read."""
        event = task.event
        kept = self._kept.get(event.session)
        if kept is None or not isinstance(event, e.TurnContinued):
            return None
        self._kept.move_to_end(event.session)
        if kept.state.last_seq == event.after_seq:
            return evolve(kept.state, e.Recorded(task.log_seq, 0, subject_of(event), event))
        return kept.state if kept.state.last_seq >= task.log_seq else None
