"""What becomes of sessions and their turns: the rows about them, told beside the fold and never without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import astuple

from helix_es.core import events as e
from helix_es.core.floor import Seat
from helix_es.core.occupancy import Occupancy
from helix_es.core.session import SESSION_STATE, Phase
from helix_projections.analytics.endings import ended
from helix_projections.analytics.lines import Line, SessionRow, TurnRow
from helix_projections.analytics.passing import Passing, PassingState
from helix_projections.analytics.rows import Rows

MOST = 1e300  # of a loss


class SessionsState(msgspec.Struct):
    """What is kept of it."""

    lines: dict[str, Line]
    adapters: dict[str, str]
    passing: list[PassingState]


class Sessions:
    """Lines of those who wait or hold a slot; of all others, only which adapter answers them."""

    def __init__(self, rows: Rows, occupancy: Occupancy, state: SessionsState | None = None) -> None:
        state = state or SessionsState({}, {}, [])
        self._rows = rows
        self._occupancy = occupancy
        self._lines = state.lines
        self._adapters = state.adapters
        self._passing = Passing.load(state.passing)
        self._touched: dict[str, SessionRow] = {}
        self._new: dict[str, None] = {}
        """Of those, whose rows no table has yet."""
        self._open: dict[str, Line] = {}
        """Lines whose open turn changed."""

    @property
    def state(self) -> SessionsState:
        return SessionsState(self._lines, self._adapters, self._passing.dump())

    def took(self, rows: Rows) -> None:
        """All there is goes to the tables now; what follows goes into `rows`."""
        for line in self._open.values():
            self._write(line)
        for name, row in self._touched.items():
            (self._rows.add if name in self._new else self._rows.change)("sessions", astuple(row))
            row.stored()
        self._open.clear()
        self._touched.clear()
        self._new.clear()
        self._rows = rows

    def _write(self, line: Line) -> None:
        """The turn of `line`, as it is, goes to the tables."""
        if line.turn is not None:
            (self._rows.change if line.turn_stored else self._rows.add)("turns", astuple(line.turn))
            line.turn_stored = True

    def _touch(self, row: SessionRow, phase: Phase, at_ms: int) -> None:
        row.state, row.last_at = SESSION_STATE[phase], at_ms
        self._touched[row.session] = row

    # -- facts

    def created(self, record: e.Recorded, event: e.SessionCreated) -> bool:
        """Return whether it could happen."""
        name = event.session
        if name in self._lines:
            return False
        row = SessionRow(
            session=name,
            owner=event.owner,
            mode=event.mode,
            type=event.type,
            model=event.model,
            adapter=event.adapter,
            name=event.name,
            priority=event.priority,
            created_at=record.at_ms,
        )
        self._lines[name] = Line(row=row)
        self._new[name] = None
        self._touch(row, "created", record.at_ms)
        if event.adapter is not None:
            self._adapters[name] = event.adapter
        return True

    def _line(self, session: str, owner: str, work: e.Workload) -> Line:
        """Return what is remembered of a session; of one that comes back, nothing but its row of this batch."""
        line = self._lines.get(session)
        if line is None:
            row = self._touched.get(session) or SessionRow(
                session=session, owner=owner, mode=work.mode, type=work.type, model=work.model
            )
            line = self._lines[session] = Line(row=row)
        return line

    def queued(self, record: e.Recorded, event: e.TurnQueued, seat: Seat) -> None:
        """A turn came to the door."""
        line = self._line(event.session, seat.owner, seat.workload)
        turn = self._opened(record, seat, line, "queued")
        turn.place, turn.estimated_ms = self._occupancy.position(seat), seat.estimated_ms
        line.entered_seq = record.seq
        self._passing.arrived(seat.workload, record.seq)

    def _opened(self, record: e.Recorded, seat: Seat, line: Line, how: str) -> TurnRow:
        work = seat.workload
        line.turn = TurnRow(
            seq=record.seq,
            session=seat.session,
            turn=seat.turn,
            owner=seat.owner,
            mode=work.mode,
            type=work.type,
            model=work.model,
            adapter=self._adapters.get(seat.session),
            how=how,
            state="queued",
            attempts=0,
            said_at=record.at_ms,
        )
        line.turn_stored, line.returned = False, None
        line.row.turns += 1
        self._open[seat.session] = line
        self._touch(line.row, seat.phase, record.at_ms)
        return line.turn

    def stepped(self, record: e.Recorded, event: Any, seat: Seat, before: Phase) -> None:
        """Something happened to a session that waits or holds a slot; `seat` is as it is now."""
        name, phase = seat.session, seat.phase
        line = self._lines[name]
        _STEPS[type(event)](self, record, event, seat, before, line)
        row = line.row
        row.state, row.last_at = SESSION_STATE[phase], record.at_ms
        self._touched[name] = row
        if phase in ("released", "closed"):
            if line.failed and phase == "released":
                row.state = "failed"
            if name not in self._occupancy.seats:
                del self._lines[name]

    def _noted(self, _record: e.Recorded, _event: Any, _seat: Seat, _before: Phase, _line: Line) -> None:
        """The rows do not say this."""

    def _continued(
        self, record: e.Recorded, event: e.TurnContinued, seat: Seat, _before: Phase, line: Line
    ) -> None:
        turn = self._opened(record, seat, line, "continued")
        turn.state, turn.attempts, turn.gpu = "admitted", event.attempt, event.gpu
        turn.admitted_at, turn.wait_ms = record.at_ms, 0

    def _admitted(
        self, record: e.Recorded, event: e.TurnAdmitted, seat: Seat, _before: Phase, line: Line
    ) -> None:
        turn, work, at_ms = line.turn, seat.workload, record.at_ms
        passed = self._passing.admitted(work, line.entered_seq)
        if turn is None:
            return
        turn.state, turn.attempts = "admitted", event.attempt
        if turn.admitted_at is None:
            turn.admitted_at, turn.wait_ms = at_ms, at_ms - turn.said_at
            turn.reservation_ms, turn.reason = event.reservation_ms, event.reason
        self._open[seat.session] = line
        waiting = len(self._occupancy.door.queue(work))
        about = (record.seq, at_ms, seat.session, event.turn, event.attempt, seat.owner)
        queue = (work.mode, work.type, work.model, seat.priority)
        waited = (event.waited_ms, event.estimated_ms, event.reservation_ms, event.reason)
        decided = (event.decided_seq, event.decided_at_ms)
        row = (*about, *queue, *waited, turn.place, passed, waiting, *decided)
        self._rows.add("admissions", row)

    def _started(
        self, record: e.Recorded, event: e.TurnStarted, seat: Seat, before: Phase, line: Line
    ) -> None:
        if before == "admitted":
            line.held_since_ms = record.at_ms
        line.row.gpu = event.gpu
        turn = line.turn
        if turn is None:
            return
        turn.state, turn.gpu, turn.attempts = "running", event.gpu, event.attempt
        turn.started_at = record.at_ms
        self._open[seat.session] = line
        gpu = self._occupancy.gpus.get(event.gpu)
        if gpu is not None and gpu.incarnation == seat.incarnation:
            turn.kind, turn.slots, turn.neighbours = gpu.kind, gpu.slots, len(gpu.sessions)

    def _progressed(
        self, record: e.Recorded, event: e.TurnProgressed, seat: Seat, _before: Phase, _line: Line
    ) -> None:
        if seat.workload.mode != "finetune":
            return
        about = (record.seq, record.at_ms, event.session, event.turn, event.attempt, event.gpu)
        loss = event.detail.get("loss")
        # JSON holds numbers that no column does
        measured = float(loss) if isinstance(loss, int | float) and abs(loss) < MOST else None
        detail = msgspec.json.encode(event.detail)
        row = (*about, event.step, event.steps, measured, detail, event.checkpoint or None)
        self._rows.add("finetune_steps", row)

    def _returned(
        self, _record: e.Recorded, event: e.TurnReturned, seat: Seat, _before: Phase, line: Line
    ) -> None:
        if seat.phase == "returned":
            line.returned = event.error

    def _released(
        self, record: e.Recorded, event: e.SessionReleased, seat: Seat, before: Phase, line: Line
    ) -> None:
        at_ms, row = record.at_ms, line.row
        held_ms = None if line.held_since_ms is None else at_ms - line.held_since_ms
        silent_ms = at_ms - line.ended_ms if before == "idle" and line.ended_ms is not None else None
        about = (record.seq, at_ms, seat.session)
        told = (seat.owner, seat.workload.model, event.gpu, event.reason)
        self._rows.add("releases", (*about, *told, held_ms, silent_ms))
        row.gpu, line.held_since_ms = None, None
        row.held_ms += held_ms or 0
        if line.turn is not None and seat.phase == "released":
            self._ended(record, event, seat, before, line)
        if seat.phase == "queued":
            self._requeued(record, seat, line, told)

    def _requeued(self, record: e.Recorded, seat: Seat, line: Line, told: tuple[str, ...]) -> None:
        """The open turn goes back to the door."""
        turn, failure = line.turn, line.returned
        line.returned, line.entered_seq = None, record.seq
        self._passing.arrived(seat.workload, record.seq)
        if turn is None:
            return
        turn.back_to_the_door()
        self._open[seat.session] = line
        why = (None, None) if failure is None else (failure.code, failure.message)
        about = (record.seq, record.at_ms, seat.session, turn.turn, turn.attempts)
        self._rows.add("requeues", (*about, *told, *why))

    def _ended(self, record: e.Recorded, event: Any, seat: Seat, before: Phase, line: Line) -> None:
        """The open turn is over."""
        turn, row = line.turn, line.row
        if before == "queued":
            self._passing.left(seat.workload, line.entered_seq)
        if turn is None:
            return
        ended(turn, event, record.at_ms)
        self._write(line)
        if turn.prompt_tokens is not None:
            row.prompt_tokens += turn.prompt_tokens
            row.cached_tokens += turn.cached_tokens or 0
            row.completion_tokens += turn.completion_tokens or 0
        line.turn, line.ended_ms = None, record.at_ms
        line.failed = row.mode == "finetune" and turn.state == "failed"
        self._open.pop(seat.session, None)

    def closed(self, record: e.Recorded, event: e.SessionClosed, seat: Seat | None, before: Phase) -> None:
        """A session is over; `seat` is what it had, None if it neither waited nor held a slot."""
        line = self._line(event.session, "", _NO_WORK)
        if line.row.closed_at is None:
            line.row.closed_at = record.at_ms
        self._adapters.pop(event.session, None)
        if seat is not None:
            self.stepped(record, event, seat, before)
            return
        self._touch(line.row, "closed", record.at_ms)
        del self._lines[event.session]


_NO_WORK = e.Workload("create", "text", "")

_STEPS: dict[type[e.Event], Callable[[Sessions, e.Recorded, Any, Seat, Phase, Line], None]] = {
    e.TurnAdmitted: Sessions._admitted,
    e.TurnContinued: Sessions._continued,
    e.TurnStarted: Sessions._started,
    e.TurnProgressed: Sessions._progressed,
    e.TurnCancelling: Sessions._noted,
    e.TurnYielding: Sessions._noted,
    e.TurnReturned: Sessions._returned,
    e.TurnCompleted: Sessions._ended,
    e.TurnFailed: Sessions._ended,
    e.TurnCancelled: Sessions._ended,
    e.SessionReleased: Sessions._released,
    e.SessionClosed: Sessions._ended,
}
