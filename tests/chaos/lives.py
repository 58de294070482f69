"""Every session's life, walked through its raw facts: each turn ended once, and by the attempt that started last."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.session import NEXT, OPEN, Phase
from tests.chaos.told import Told
from tests.chaos.violation import Rule, Violation

ENDS = (e.TurnCompleted, e.TurnFailed, e.TurnCancelled)
OF_ATTEMPT = (*ENDS, e.TurnProgressed, e.TurnReturned, e.TurnYielding)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that began."""

    seq: int
    at_ms: int
    attempt: int
    gpu: str


class Requeued(msgspec.Struct, frozen=True):
    """A turn went back to the door."""

    at_ms: int
    reason: str
    gpu: str
    """That held its session."""


class TurnLife(msgspec.Struct, kw_only=True):
    """One turn, as the log has it."""

    session: str
    turn: int
    queued_ms: int
    params: dict[str, Any]
    continued: bool = False
    """It went to the GPU that held its session, without a wait at the door."""
    admitted: list[e.TurnAdmitted] = msgspec.field(default_factory=list)
    attempt: int = 0
    offered_ms: int = 0
    """When the open attempt became a task."""
    dispatch_ms: list[int] = msgspec.field(default_factory=list)
    """From task to start, of each attempt that started."""
    started: list[Started] = msgspec.field(default_factory=list)
    requeued: list[Requeued] = msgspec.field(default_factory=list)
    end: str = ""
    """The tag of what ended it; `session.released` if its GPU was lost while it was asked to stop."""
    end_seq: int = 0
    end_ms: int = 0
    output: str = ""
    error: str = ""


class Life(msgspec.Struct, kw_only=True):
    """One session."""

    session: str
    first_seq: int
    phase: Phase = "new"
    created: e.SessionCreated | None = None
    turns: list[TurnLife] = msgspec.field(default_factory=list)
    gpu: str = ""
    incarnation: str = ""


class Lives:
    """Give it all records in order, then `close`."""

    def __init__(self) -> None:
        self.sessions: dict[str, Life] = {}
        self.violations: list[Violation] = []

    @property
    def open(self) -> list[TurnLife]:
        """Turns that have not ended."""
        return [life.turns[-1] for life in self.sessions.values() if life.phase in OPEN and life.turns]

    def turn(self, session: str, turn: int) -> TurnLife | None:
        """Return a turn, or None if the log has none such."""
        life = self.sessions.get(session)
        return life.turns[turn - 1] if life is not None and 1 <= turn <= len(life.turns) else None

    def apply(self, record: e.Recorded) -> None:
        """Take the next record."""
        if record.event is None:
            self._break("log", record.seq, "", f"unreadable: {record.subject}")
            return
        session: str = getattr(record.event, "session", "")
        if not session:
            return
        life = self.sessions.get(session)
        if life is None:
            life = self.sessions[session] = Life(session=session, first_seq=record.seq)
        phase = NEXT.get(type(record.event), {}).get(life.phase)
        if phase is None:
            self._impossible(life, record, record.event)
            return
        if not self._expected(life, record, record.event):
            return
        before, life.phase = life.phase, phase
        self._evolve(life, before, record)

    def _break(self, rule: Rule, seq: int, session: str, text: str) -> None:
        self.violations.append(Violation(rule=rule, seq=seq, session=session, text=text))

    def _impossible(self, life: Life, record: e.Recorded, event: e.AnyEvent) -> None:
        """Every writer has a fence, so nothing is ever stored that cannot happen where it stands."""
        turn: int = getattr(event, "turn", 0)
        told = life.turns[turn - 1] if 1 <= turn <= len(life.turns) else None
        if isinstance(event, ENDS) and told is not None and told.end:
            text = f"turn {turn} ended at {told.end_seq} by {told.end}, and again by {type_of(event)}"
            self._break("ended once", record.seq, life.session, text)
        else:
            text = f"{type_of(event)} cannot happen while the session is {life.phase}"
            self._break("attempts", record.seq, life.session, text)

    def _expected(self, life: Life, record: e.Recorded, event: e.AnyEvent) -> bool:
        """Whether a fact is about the turn, attempt and GPU that it must be about."""
        turn = getattr(event, "turn", None)
        opens = isinstance(event, e.TurnQueued | e.TurnContinued)
        wrong = ""
        if turn is not None and turn != len(life.turns) + opens:
            wrong = f"of turn {turn}, of {len(life.turns)}"
        elif (
            isinstance(event, e.TurnContinued | e.SessionReleased | e.TurnCancelling)
            and event.gpu != life.gpu
        ):
            wrong = f"of GPU {event.gpu}, held by {life.gpu or 'none'}"
        elif isinstance(event, e.SessionReleased) and event.incarnation != life.incarnation:
            wrong = f"of incarnation {event.incarnation}, held by {life.incarnation}"
        elif isinstance(event, e.TurnAdmitted) and event.attempt != life.turns[-1].attempt + 1:
            wrong = f"of attempt {event.attempt} after {life.turns[-1].attempt}"
        elif isinstance(event, e.TurnContinued) and event.attempt != 1:
            wrong = f"of attempt {event.attempt}, the first"
        elif isinstance(event, e.TurnStarted):
            wrong = self._wrong_start(life, event)
        elif isinstance(event, OF_ATTEMPT) and life.phase in ("running", "cancelling"):
            wrong = self._stale(life, event)
        if wrong:
            self._break("attempts", record.seq, life.session, f"{type_of(event)} {wrong}")
        return not wrong

    @staticmethod
    def _wrong_start(life: Life, event: e.TurnStarted) -> str:
        if event.attempt != life.turns[-1].attempt:
            return f"of attempt {event.attempt}, admitted was {life.turns[-1].attempt}"
        if life.phase == "continued" and (event.gpu, event.incarnation) != (life.gpu, life.incarnation):
            return f"by {event.gpu} {event.incarnation}, held by {life.gpu} {life.incarnation}"
        return ""

    @staticmethod
    def _stale(life: Life, event: Any) -> str:
        last = life.turns[-1].started[-1]
        if (event.gpu, event.attempt) != (last.gpu, last.attempt):
            return f"of {event.gpu}, attempt {event.attempt}; started last was {last.gpu}, {last.attempt}"
        return ""

    def _evolve(self, life: Life, before: Phase, record: e.Recorded) -> None:
        match record.event:
            case e.SessionCreated() as created:
                life.created = created
            case e.TurnQueued() | e.TurnContinued() as opened:
                continued = isinstance(opened, e.TurnContinued)
                life.turns.append(
                    TurnLife(
                        session=life.session,
                        turn=opened.turn,
                        queued_ms=record.at_ms,
                        params=opened.params,
                        continued=continued,
                        attempt=1 if continued else 0,
                        offered_ms=record.at_ms,
                    )
                )
            case e.TurnAdmitted() as admitted:
                life.turns[-1].admitted.append(admitted)
                life.turns[-1].attempt, life.turns[-1].offered_ms = admitted.attempt, record.at_ms
            case e.TurnStarted(attempt=attempt, gpu=gpu, incarnation=incarnation):
                life.gpu, life.incarnation = gpu, incarnation
                began = Started(seq=record.seq, at_ms=record.at_ms, attempt=attempt, gpu=gpu)
                life.turns[-1].started.append(began)
                life.turns[-1].dispatch_ms.append(record.at_ms - life.turns[-1].offered_ms)
            case e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled() as ended:
                self._end(life.turns[-1], record, ended.output)
                life.turns[-1].error = ended.error.code if isinstance(ended, e.TurnFailed) else ""
            case e.SessionReleased(reason=reason, gpu=gpu):
                life.gpu = life.incarnation = ""
                if before == "cancelling":
                    self._end(life.turns[-1], record)
                elif life.phase == "queued":
                    life.turns[-1].requeued.append(Requeued(record.at_ms, reason, gpu))
            case e.SessionClosed() if before in OPEN:
                self._end(life.turns[-1], record)
            case _:
                pass

    @staticmethod
    def _end(turn: TurnLife, record: e.Recorded, output: str = "") -> None:
        turn.end = type_of(record.event) if record.event is not None else ""
        turn.end_seq, turn.end_ms, turn.output = record.seq, record.at_ms, output

    # -- the end of the log

    def close(self, told: Told) -> None:
        """All records were given: what must have happened by now?"""
        for turn in self.open:
            text = f"turn {turn.turn} never ended; its session is {self.sessions[turn.session].phase}"
            last = turn.started[-1].seq if turn.started else self.sessions[turn.session].first_seq
            self._break("ended once", last, turn.session, text)
        for ack in told.acks:
            if self.turn(ack.session, ack.turn) is None:
                text = f"turn {ack.turn} was acknowledged and is not in the log"
                self._break("ended once", 0, ack.session, text)
        for session, asked in told.asked.items():
            life = self.sessions.get(session)
            if life is not None and len(life.turns) > asked:
                text = f"{len(life.turns)} turns of {asked} requests"
                self._break("asked once", life.first_seq, session, text)
        if len(self.sessions) > told.visits:
            text = f"{len(self.sessions)} sessions of {told.visits} requests"
            self._break("asked once", 0, "", text)
