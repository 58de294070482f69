"""One stretch of one turn at the door: what happens meanwhile, to slots, to those ahead and to those who pass."""

from __future__ import annotations

from collections import Counter

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.floor import Seat
from helix_es.core.occupancy import Occupancy
from helix_es.core.standing import ahead_of, named_ahead, obstacles, why_ahead
from helix_es.core.story import Change, Decision, Passed, PassedWhy, Wait, WaitBecause

MOST_NAMED = 50  # of those ahead, of those who passed, of changes of either kind; the rest is counted


class Vigil:
    """Begins when the turn has come to the door, and folds the records of others into `state` from then on."""

    def __init__(self, state: Occupancy, seat: Seat, record: e.Recorded, because: WaitBecause) -> None:
        self._state = state
        self._seat = seat
        ahead = ahead_of(state, seat)
        self._ahead = {each.session for each in ahead}
        """Those who stood ahead on arrival and were not admitted since."""
        self._passed_at: Counter[int] = Counter()
        """Sequence at which it was decided -> those admitted by that who passed."""
        self._decided_ms = record.at_ms
        """When the last decision was stored, or the wait began."""
        capacity, place = state.door.capacity(seat.workload), len(ahead) + 1
        told_ms = seat.estimated_ms if because == "said" else state.wait_ms(seat.workload, place)
        self.wait = Wait(
            seq=record.seq,
            at_ms=record.at_ms,
            because=because,
            place=place,
            told_ms=told_ms,
            slots=capacity.slots,
            free=max(0, capacity.free),
            owner_held=state.held.get(seat.owner, 0),
            owner_most=state.policy.slots_per_owner,
            ahead=[] if seat.place is None else named_ahead(ahead, seat.place, MOST_NAMED),
            obstacles=obstacles(state, seat),
        )

    @property
    def _barred(self) -> bool:
        """Whether its owner holds as many slots as one may."""
        return self._state.held.get(self._seat.owner, 0) >= self._state.policy.slots_per_owner > 0

    def admitted(self, record: e.Recorded, event: e.TurnAdmitted) -> None:
        """The wait is over."""
        wait = self.wait
        wait.decision = Decision(
            seq=record.seq,
            at_ms=record.at_ms,
            decided_seq=event.decided_seq,
            decided_at_ms=event.decided_at_ms,
            attempt=event.attempt,
            reason=event.reason,
            waited_ms=event.waited_ms,
            estimated_ms=event.estimated_ms,
            reservation_ms=event.reservation_ms,
        )
        if wait.because == "said":
            wait.told_ms = event.estimated_ms  # what was told then, by whatever release that was
        # One plan admitted all of these: nobody passed anybody.
        wait.passed_by -= self._passed_at[event.decided_seq]
        wait.passed = [each for each in wait.passed if each.decided_seq != event.decided_seq]
        wait.close(record.at_ms, "admitted")

    def meanwhile(self, record: e.Recorded) -> None:
        """Fold a record of others, and see what it changes for those who wait."""
        self.passes_time(record)
        state, event = self._state, record.event
        capacity = state.door.capacity(self._seat.workload)
        slots, room = capacity.slots, capacity.room
        if isinstance(event, e.TurnAdmitted):
            self._admits_other(record, event)
        else:
            state.apply(record)
        more, free = capacity.slots - slots, capacity.room - room
        if event is not None and (more or free > 0):
            self._changes(_change(record, event, more, free), _source(event))

    def passes_time(self, record: e.Recorded) -> None:
        """Count what the time until `record` was, before that is folded."""
        state, seat, wait = self._state, self._seat, self.wait
        passed_ms = max(0, record.at_ms - state.folded_ms)
        if self._barred:
            wait.barred_ms += passed_ms
        else:
            position = state.position(seat)
            if position is not None and position <= state.door.capacity(seat.workload).free:
                wait.slot_there_ms += passed_ms
        if getattr(record.event, "decided_seq", None) is not None:
            wait.undecided_ms = max(wait.undecided_ms, record.at_ms - self._decided_ms)
            self._decided_ms = record.at_ms

    def _changes(self, change: Change, source: str) -> None:
        """Count a change, and keep it: what came last says most about the admission, so the middle ones go."""
        wait = self.wait
        wait.changed += 1
        if change.slots:
            wait.resized += 1
        if change.free > 0:
            wait.freed += change.free
            wait.freed_by[source] = wait.freed_by.get(source, 0) + change.free
        # of either kind, or the many releases would crowd out the few GPUs
        alike = [n for n, each in enumerate(wait.changes) if bool(each.slots) == bool(change.slots)]
        if len(alike) >= MOST_NAMED:
            del wait.changes[alike[MOST_NAMED // 2]]
        wait.changes.append(change)

    # -- somebody else is admitted

    def _admits_other(self, record: e.Recorded, event: e.TurnAdmitted) -> None:
        other = self._state.seats.get(event.session)
        passed = None
        if other is not None and other.phase == "queued":
            passed = self._passes(other, record, event)
        self._state.apply(record)
        if other is None or other.phase != "admitted":
            return
        if passed is not None:
            self.wait.passed_by += 1
            self._passed_at[event.decided_seq] += 1
            if len(self.wait.passed) < MOST_NAMED:
                self.wait.passed.append(passed)
        elif other.session in self._ahead:
            self._ahead.discard(other.session)
            self.wait.served_ahead += 1

    def _passes(self, other: Seat, record: e.Recorded, event: e.TurnAdmitted) -> Passed | None:
        """Return how `other` passes; None if it waits for something else or was ahead already."""
        if other.workload != self._seat.workload or other.session in self._ahead:
            return None
        return Passed(
            session=other.session,
            owner=other.owner,
            turn=other.turn,
            priority=other.priority,
            queued_ms=other.queued_ms,
            admitted_seq=record.seq,
            admitted_ms=record.at_ms,
            decided_seq=event.decided_seq,
            why=self._why_passes(other, event),
        )

    def _why_passes(self, other: Seat, event: e.TurnAdmitted) -> PassedWhy:
        if event.decided_seq < self.wait.seq:
            return "decided_before"
        mine = self._seat.place
        if other.place is not None and mine is not None and other.place < mine:
            found = why_ahead(other, mine)
            return "came_back" if found == "earlier" else found
        return "owner_limit" if self._barred else "behind"


def _source(event: e.AnyEvent) -> str:
    """Return what slots that `event` freed are counted under."""
    return event.reason if isinstance(event, e.SessionReleased) else type_of(event)


def _change(record: e.Recorded, event: e.AnyEvent, slots: int, free: int) -> Change:
    return Change(
        seq=record.seq,
        at_ms=record.at_ms,
        what=type_of(event),
        gpu=getattr(event, "gpu", ""),
        slots=slots,
        free=free,
        session=getattr(event, "session", None),
        reason=getattr(event, "reason", ""),
    )
