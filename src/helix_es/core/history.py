"""One session in full, folded from its own facts: what the API shows and what a runner rebuilds from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from helix_es.core import events as e
from helix_es.core.session import OPEN, SESSION_STATE, Phase, SessionState, TurnState, next_phase


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a long turn is."""

    step: int
    steps: int
    detail: dict[str, Any]


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer. Times are the log's, Unix ms."""

    turn: int
    state: TurnState
    prompt: str
    history: list[e.Message] | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    request: str = ""
    output: str = ""
    files: list[str] = msgspec.field(default_factory=list)
    error: e.Failure | None = None
    attempt: int = 0
    gpu: str | None = None
    usage: e.Usage = e.Usage()
    finish_reason: str | None = None
    cancelling: bool = False
    progress: Progress | None = None
    checkpoint: list[str] = msgspec.field(default_factory=list)
    """Files of the last checkpoint, of whichever attempt."""
    queued_ms: int
    admitted_ms: int | None = None
    started_ms: int | None = None
    first_token_ms: int | None = None
    ended_ms: int | None = None
    estimated_ms: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its facts tell it."""

    session: e.SessionId
    phase: Phase = "new"
    mode: e.Mode = "create"
    type: e.Kind = "text"
    model: str = ""
    owner: str = ""
    system: str | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    adapter: str | None = None
    adapter_files: list[str] = msgspec.field(default_factory=list)
    dataset: str | None = None
    name: str | None = None
    priority: int = 0
    request: str = ""
    gpu: str | None = None
    created_ms: int = 0
    last_seq: int = 0
    """The fence: sequence of its last stored message, readable or not."""
    turns: tuple[Turn, ...] = ()

    @property
    def workload(self) -> e.Workload:
        return e.Workload(self.mode, self.type, self.model)

    @property
    def open_turn(self) -> Turn | None:
        return self.turns[-1] if self.phase in OPEN else None

    @property
    def state(self) -> SessionState:
        """The state that users see."""
        if self.phase == "released" and self.mode == "finetune" and self.turns[-1].state == "failed":
            return "failed"
        return SESSION_STATE[self.phase]

    def picture_before(self, turn: int) -> str | None:
        """Return the first file of the last completed turn before `turn`, which that turn goes on from."""
        for each in reversed(self.turns[: turn - 1]):
            if each.state == "completed" and each.files:
                return each.files[0]
        return None

    def messages(self, turn: int) -> list[e.Message]:
        """Return the conversation up to and including the prompt of `turn`."""
        said = [e.Message(role="system", content=self.system)] if self.system else []
        for each in self.turns[:turn]:
            if each.history is not None:
                said = list(each.history)
            said.append(e.Message(role="user", content=each.prompt))
            if each.turn == turn:
                break
            if each.output and each.state != "failed":
                said.append(e.Message(role="assistant", content=each.output))
            else:
                said.pop()  # an unanswered prompt would put two user messages in a row, which templates refuse
        return said


def fold(session: str, records: Iterable[e.Recorded]) -> Session:
    """Return the session that `records`, its facts in log order, make."""
    state = Session(session=e.SessionId(session))
    for record in records:
        state = evolve(state, record)
    return state


def evolve(state: Session, record: e.Recorded) -> Session:
    """Return `state` after `record`; a fact that cannot happen in its phase moves only the fence."""
    event = record.event
    phase = None if event is None else next_phase(state.phase, event)
    if event is None or phase is None or not _fits(state, event):
        return replace(state, last_seq=record.seq)
    return _evolve(replace(state, phase=phase, last_seq=record.seq), event, record.at_ms)


def _fits(state: Session, event: e.AnyEvent) -> bool:
    """A fact about a turn must be about the open one, or open the next."""
    match event:
        case e.TurnQueued() | e.TurnContinued():
            return event.turn == len(state.turns) + 1
        case e.TurnAdmitted() | e.TurnStarted() | e.TurnProgressed() | e.TurnCancelling():
            return event.turn == len(state.turns)
        case e.TurnYielding() | e.TurnReturned() | e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled():
            return event.turn == len(state.turns)
        case _:
            return True


def _evolve(state: Session, event: e.AnyEvent, at_ms: int) -> Session:
    match event:
        case e.SessionCreated():
            return _created(state, event, at_ms)
        case e.TurnQueued() | e.TurnContinued():
            opened = Turn(
                turn=event.turn,
                state="queued",
                prompt=event.prompt,
                history=event.history,
                params=event.params,
                request=event.request,
                queued_ms=at_ms,
            )
            if isinstance(event, e.TurnContinued):
                opened = replace(
                    opened, state="admitted", attempt=event.attempt, gpu=event.gpu, admitted_ms=at_ms
                )
            return replace(state, turns=(*state.turns, opened))
        case e.TurnAdmitted():
            return _turn(
                state,
                state="admitted",
                attempt=event.attempt,
                admitted_ms=at_ms,
                estimated_ms=event.estimated_ms,
            )
        case e.TurnStarted():
            bound = replace(state, gpu=event.gpu)
            return _turn(bound, state="running", attempt=event.attempt, gpu=event.gpu, started_ms=at_ms)
        case e.TurnProgressed():
            progress = Progress(step=event.step, steps=event.steps, detail=event.detail)
            if event.checkpoint:
                return _turn(state, progress=progress, checkpoint=event.checkpoint)
            return _turn(state, progress=progress)
        case e.TurnCancelling():
            return _turn(state, cancelling=True)
        case e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled():
            return _ended(state, event, at_ms)
        case e.SessionReleased():
            unbound = replace(state, gpu=None)
            if state.phase == "released" and state.turns[-1].ended_ms is None:
                return _turn(unbound, state="cancelled", ended_ms=at_ms, finish_reason="cancelled")
            if state.phase != "queued":
                return unbound
            return _turn(unbound, state="queued", gpu=None, started_ms=None, admitted_ms=None)
        case e.SessionClosed():
            if state.turns and state.turns[-1].ended_ms is None:
                return _turn(state, state="cancelled", ended_ms=at_ms)
            return state
        case _:
            return state


def _created(state: Session, event: e.SessionCreated, at_ms: int) -> Session:
    return replace(
        state,
        mode=event.mode,
        type=event.type,
        model=event.model,
        owner=event.owner,
        system=event.system,
        params=event.params,
        adapter=event.adapter,
        adapter_files=event.adapter_files,
        dataset=event.dataset,
        name=event.name,
        priority=event.priority,
        request=event.request,
        created_ms=at_ms,
    )


def _ended(state: Session, event: e.TurnCompleted | e.TurnFailed | e.TurnCancelled, at_ms: int) -> Session:
    ended: dict[str, Any] = {"ended_ms": at_ms, "output": event.output}
    started_ms = state.turns[-1].started_ms
    match event:
        case e.TurnCompleted():
            ended |= {"state": "completed", "usage": event.usage, "files": event.files}
            ended["finish_reason"] = event.finish_reason
        case e.TurnFailed():
            ended |= {"state": "failed", "error": event.error}
        case e.TurnCancelled():
            ended |= {"state": "cancelled", "usage": event.usage, "files": event.files}
            ended["finish_reason"] = "cancelled"
    if not isinstance(event, e.TurnFailed) and event.first_token_ms is not None and started_ms is not None:
        # The runner's clock gives a distance only; the log gives the instant that it counts from.
        ended["first_token_ms"] = min(at_ms, started_ms + event.first_token_ms)
    return _turn(state, **ended)


def _turn(session: Session, /, **changes: Any) -> Session:
    return replace(session, turns=(*session.turns[:-1], replace(session.turns[-1], **changes)))
