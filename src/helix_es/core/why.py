"""Why each turn of a session waited, who was ahead, and what decided: by one pass over the log, beside its fold."""

from __future__ import annotations

from typing import Literal

from helix_es.core import events as e
from helix_es.core.history import Session, evolve
from helix_es.core.occupancy import Occupancy
from helix_es.core.session import next_phase
from helix_es.core.standing import beside
from helix_es.core.story import Release, Run, Story, TurnStory, WaitBecause
from helix_es.core.vigil import Vigil

SIMILAR = 3

End = Literal["completed", "failed", "cancelled", "closed"]


class Why:
    """Give it every record of a log, in order; then `story` is the session's."""

    def __init__(self, session: str) -> None:
        self._session = Session(session=e.SessionId(session))
        self._state = Occupancy()
        self._story: Story | None = None
        self._vigil: Vigil | None = None
        """The stretch at the door that is not over."""
        self.similar: list[str] = []
        """Some sessions whose names begin so."""

    @property
    def story(self) -> Story | None:
        """What became of the session; None if the log does not know it."""
        if self._story is not None:
            self._story.log_seq, self._story.log_ms = self._state.seq, self._state.folded_ms
        return self._story

    def take(self, record: e.Recorded) -> None:
        """Fold the next record, and note what it says about the session."""
        event = record.event
        if event is not None and getattr(event, "session", None) == self._session.session:
            self._own(record, event)
        elif self._vigil is not None:
            self._vigil.meanwhile(record)
        else:
            self._state.apply(record)
        if isinstance(event, e.SessionCreated) and len(self.similar) < SIMILAR:
            self._compare(event.session)

    def _own(self, record: e.Recorded, event: e.AnyEvent) -> None:
        """Fold a fact of the session itself."""
        happens, self._session = _happens(self._session, event), evolve(self._session, record)
        release = self._release(record, event)
        if self._vigil is not None:
            self._vigil.passes_time(record)
        self._state.apply(record)
        if not happens:
            return
        if isinstance(event, e.SessionCreated):
            self._story = _begun(event, record.at_ms)
        elif self._story is not None:
            self._note(self._story, record, event, release)

    def _compare(self, session: str) -> None:
        if session.startswith(self._session.session):
            self.similar.append(session)

    def _release(self, record: e.Recorded, event: e.AnyEvent) -> Release | None:
        """Return what a release is to be remembered by; before it is folded."""
        if not isinstance(event, e.SessionReleased):
            return None
        return Release(
            seq=record.seq,
            at_ms=record.at_ms,
            gpu=event.gpu,
            reason=event.reason,
            decided_seq=event.decided_seq,
            waiting=len(self._state.door.queue(self._session.workload)),
        )

    # -- facts of the session

    def _note(self, story: Story, record: e.Recorded, event: e.AnyEvent, release: Release | None) -> None:
        match event:
            case e.TurnQueued() | e.TurnContinued():
                straight = isinstance(event, e.TurnContinued)
                told = TurnStory(turn=event.turn, seq=record.seq, at_ms=record.at_ms, straight=straight)
                told.state = self._session.turns[-1].state
                story.turns.append(told)
                if not straight:
                    self._arrive(told, record, "said")
            case e.SessionReleased():
                self._released(story, record, event.reason, release)
            case e.SessionClosed():
                story.closed_ms = record.at_ms
                if story.turns and story.turns[-1].ended_ms is None:
                    self._ended(story.turns[-1], record, "closed")
            case _ if story.turns:
                self._of_turn(story.turns[-1], record, event)

    def _of_turn(self, told: TurnStory, record: e.Recorded, event: e.AnyEvent) -> None:
        told.state = self._session.turns[-1].state
        match event:
            case e.TurnAdmitted():
                if self._vigil is not None:
                    self._vigil.admitted(record, event)
                    self._vigil = None
            case e.TurnStarted():
                told.runs.append(self._run(record, event))
            case e.TurnCancelling() if told.runs:
                told.runs[-1].asked_to_stop_ms = record.at_ms
            case e.TurnYielding() if told.runs:
                told.runs[-1].asked_to_yield_ms = record.at_ms
            case e.TurnProgressed() if told.runs and event.checkpoint:
                told.runs[-1].checkpoints += 1
            case e.TurnReturned() if told.runs:
                told.runs[-1].close(record.seq, record.at_ms, "returned")
                told.runs[-1].error = event.error
            case e.TurnCompleted():
                self._ended(told, record, "completed")
            case e.TurnFailed():
                self._ended(told, record, "failed")
            case e.TurnCancelled():
                self._ended(told, record, "cancelled")
            case _:
                pass

    def _arrive(self, told: TurnStory, record: e.Recorded, because: WaitBecause) -> None:
        """The turn stands at the door."""
        seat = self._state.seats.get(self._session.session)
        if seat is not None:
            self._vigil = Vigil(self._state, seat, record, because)
            told.waits.append(self._vigil.wait)

    def _run(self, record: e.Recorded, event: e.TurnStarted) -> Run:
        gpu = self._state.gpus.get(event.gpu)
        return Run(
            seq=record.seq,
            at_ms=record.at_ms,
            attempt=event.attempt,
            gpu=event.gpu,
            slots=0 if gpu is None else gpu.slots,
            beside=beside(self._state, event.gpu, event.session),
        )

    def _released(
        self, story: Story, record: e.Recorded, reason: e.ReleaseReason, release: Release | None
    ) -> None:
        if release is not None:
            story.releases.append(release)
        if not story.turns or story.turns[-1].ended_ms is not None:
            return
        told = story.turns[-1]
        told.state = self._session.turns[-1].state
        if told.runs and told.runs[-1].end is None:
            told.runs[-1].close(record.seq, record.at_ms, reason)
        if self._session.phase == "queued":
            self._arrive(told, record, reason)
        else:
            told.ended_ms = record.at_ms  # somebody wanted it to stop, and then its GPU was gone

    def _ended(self, told: TurnStory, record: e.Recorded, how: End) -> None:
        turn = self._session.turns[-1]
        told.state, told.ended_ms, told.first_token_ms = turn.state, record.at_ms, turn.first_token_ms
        told.usage, told.error = turn.usage, turn.error
        if told.runs and told.runs[-1].end is None:
            told.runs[-1].close(record.seq, record.at_ms, how)
            told.runs[-1].error = turn.error
        if self._vigil is not None and how != "completed":
            self._vigil.wait.close(record.at_ms, how)
        self._vigil = None


def _happens(session: Session, event: e.AnyEvent) -> bool:
    """Whether the fact means anything where it stands, as the session's own fold judges."""
    turn: int | None = getattr(event, "turn", None)
    opens = isinstance(event, e.TurnQueued | e.TurnContinued)
    return next_phase(session.phase, event) is not None and turn in (None, len(session.turns) + opens)


def _begun(event: e.SessionCreated, at_ms: int) -> Story:
    return Story(
        session=event.session,
        owner=event.owner,
        mode=event.mode,
        type=event.type,
        model=event.model,
        priority=event.priority,
        adapter=event.adapter,
        created_ms=at_ms,
    )
