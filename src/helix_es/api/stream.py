"""The event stream of one session: facts and pieces in one order, resumable at any replica of the API."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from helix_es.api.views import QueueView, queue_view, session_view, turn_view
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import Rejected, Unavailable
from helix_es.core.history import Session, Turn, evolve
from helix_es.core.subjects import session_filter
from helix_es.jetstream.deltas import Delta, Deltas, Step
from helix_es.log import Log
from helix_es.replica import Replica

PLACE_EVERY_S = 0.2  # how often a changed place is looked for
PING_S = 10.0  # proxies close what is silent for longer
ENDS = (e.TurnCompleted, e.TurnFailed, e.TurnCancelled)


class Cursor(msgspec.Struct, frozen=True):
    """What a client has seen: `<log sequence>.<attempt>.<characters of that attempt>`."""

    seq: int = 0
    attempt: int = 0
    chars: int = 0

    def __str__(self) -> str:
        return f"{self.seq}.{self.attempt}.{self.chars}"

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """Return the cursor in a Last-Event-ID. Raises Rejected for one that we never gave out."""
        if not text:
            return cls()
        parts = text.split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
            raise Rejected(
                "invalid_request", f"Last-Event-ID {text[:60]!r}: must be <sequence>.<attempt>.<chars>"
            )
        return cls(*(int(part) for part in parts))


class Item(msgspec.Struct, frozen=True):
    """One event for the client."""

    name: str
    id: Cursor | None
    data: Any

    def encode(self) -> bytes:
        """Return it as server-sent event."""
        head = f"id: {self.id}\n" if self.id is not None else ""
        return f"{head}event: {self.name}\n".encode() + b"data: " + msgspec.json.encode(self.data) + b"\n\n"


class SessionStream:
    """Follows one session from a cursor on."""

    def __init__(self, log: Log, replica: Replica, deltas: Deltas, session: str, cursor: Cursor) -> None:
        self._log = log
        self._replica = replica
        self._deltas = deltas
        self._name = session
        self._session = Session(session=e.SessionId(session))
        self._resumed = self._cursor = cursor
        self._chars = 0  # of the running attempt, given to the client
        self._said: QueueView | None = None
        self._silent_s = 0.0
        self._early: deque[Delta] = deque(maxlen=10_000)  # pieces that overtook the fact they belong to
        self._inbox: asyncio.Queue[e.Recorded | Delta] = asyncio.Queue()

    async def items(self, only_turn: int | None = None) -> AsyncIterator[Item | None]:
        """Yield what happens; None is a sign of life. Ends with the session, or with `only_turn`."""
        with self._replica.subscription(self._name, self._inbox.put_nowait):
            async with self._deltas.listen(self._name, self._inbox.put_nowait):
                records = await self._log.history(session_filter(self._name), fresh=True)
                if records and self._resumed.seq > records[-1].seq:
                    self._resumed = Cursor()  # of another session or another log: begin at the beginning
                for record in records:
                    async for item in self._fact(record, only_turn):
                        yield item
                    if self._over(only_turn):
                        return
                async for item in self._remembered(only_turn):
                    yield item
                while not self._over(only_turn):
                    async for happened in self._next(only_turn):
                        yield happened

    def _over(self, only_turn: int | None) -> bool:
        if self._session.phase == "closed":
            return True
        turns = self._session.turns
        return only_turn is not None and len(turns) >= only_turn and turns[only_turn - 1].ended_ms is not None

    async def _next(self, only_turn: int | None) -> AsyncIterator[Item | None]:
        waiting = self._session.phase == "queued"
        if waiting and (place := self._place()) is not None:
            self._silent_s = 0.0
            yield place
        patience_s = PLACE_EVERY_S if waiting else PING_S
        try:
            got = await asyncio.wait_for(self._inbox.get(), patience_s)
        except TimeoutError:
            self._silent_s += patience_s
            if self._silent_s >= PING_S:
                self._silent_s = 0.0
                yield None
            return
        self._silent_s = 0.0
        if isinstance(got, Delta):
            if only_turn not in (None, got.turn):
                return
            if got.step is not None:
                if (told := self._told(got, got.step)) is not None:
                    yield told
                return
            async for item in self._piece(got):
                yield item
            return
        async for item in self._fact(got, only_turn):
            yield item
        if isinstance(got.event, e.TurnStarted):
            for piece in [self._early.popleft() for _ in range(len(self._early))]:
                async for item in self._piece(piece):
                    yield item

    # -- facts

    async def _fact(self, record: e.Recorded, only_turn: int | None) -> AsyncIterator[Item]:
        if record.seq <= self._session.last_seq:
            return
        before = self._session
        self._session = evolve(before, record)
        if record.event is None or self._session.phase == before.phase == "closed":
            return
        turn = self._session.turns[-1] if self._session.turns else None
        if isinstance(record.event, e.TurnStarted):
            self._chars = 0
        if isinstance(record.event, e.TurnQueued | e.TurnContinued):
            self._chars, self._said = 0, None
        if record.seq <= self._resumed.seq:  # the client has it
            if turn is not None and turn.state == "running" and turn.attempt == self._resumed.attempt:
                self._chars = self._resumed.chars
            return
        if only_turn is not None and (turn is None or turn.turn != only_turn):
            return
        if turn is not None and isinstance(record.event, ENDS) and len(turn.output) > self._chars:
            yield self._delta(turn, turn.output[self._chars :])
        if isinstance(record.event, ENDS):
            self._chars = 0
        self._cursor = Cursor(record.seq, turn.attempt if turn else 0, self._chars)
        yield Item(_name(record.event, before, turn), self._cursor, self._shown(turn))

    def _shown(self, turn: Turn | None) -> dict[str, Any]:
        view = session_view(self._session, self._replica.state)
        return {
            "session_id": view.session_id,
            "state": view.state,
            "gpu": view.gpu,
            "queue": view.queue if self._session.phase == "queued" else None,
            "turn": turn_view(turn) if turn is not None else None,
        }

    def _place(self) -> Item | None:
        """The place at the door, if it changed since it was told."""
        place = queue_view(self._name, self._replica.state)
        if place is None or place == self._said:
            return None
        said, self._said = self._said, place
        if said is not None and _like(said, place):
            self._said = said
            return None
        return Item("queue", None, {"turn": len(self._session.turns), **msgspec.structs.asdict(place)})

    # -- pieces

    def _delta(self, turn: Turn, text: str) -> Item:
        offset = self._chars
        self._chars += len(text)
        self._cursor = Cursor(self._session.last_seq, turn.attempt, self._chars)
        if turn.ended_ms is not None:  # the end is not told yet: whoever resumes here must still hear it
            self._cursor = Cursor(self._session.last_seq - 1, turn.attempt, self._chars)
        data = {"turn": turn.turn, "attempt": turn.attempt, "offset": offset, "text": text}
        return Item("delta", self._cursor, data)

    async def _remembered(self, only_turn: int | None) -> AsyncIterator[Item]:
        """What the running attempt said before we listened."""
        turn = self._session.open_turn
        if turn is None or turn.state != "running" or only_turn not in (None, turn.turn):
            return
        last: Item | None = None
        for piece in await self._deltas.read(self._name, turn.turn, turn.attempt):
            if piece.step is not None:
                last = self._told(piece, piece.step)
                continue
            async for item in self._piece(piece):
                yield item
        if last is not None:
            yield last

    def _told(self, piece: Delta, step: Step) -> Item | None:
        """A step of the running attempt. It has no id: whoever resumes is told the newest, not those it missed."""
        turn = self._session.open_turn
        if turn is None or (turn.turn, turn.attempt) != (piece.turn, piece.attempt):
            return None
        data = {
            "turn": piece.turn,
            "attempt": piece.attempt,
            "step": step.step,
            "steps": step.steps,
            "detail": step.detail,
            "preview": f"data:image/png;base64,{step.preview}" if step.preview else None,
        }
        return Item("progress", None, data)

    async def _piece(self, piece: Delta) -> AsyncIterator[Item]:
        turn = self._session.open_turn
        current = (len(self._session.turns), turn.attempt if turn is not None else 0)
        if turn is None or turn.state != "running" or current != (piece.turn, piece.attempt):
            if (piece.turn, piece.attempt) > current or (turn is not None and turn.state != "running"):
                self._early.append(piece)
            return
        if piece.offset > self._chars:  # one was lost on the way; the stream remembers it
            try:
                read = await self._deltas.read(self._name, turn.turn, turn.attempt)
                pieces = _standing([each for each in read if each.step is None])
            except Unavailable:
                return  # the end of the turn carries all of it
        else:
            pieces = [piece]
        for each in pieces:
            if each.back:
                self._chars = min(self._chars, each.offset)
            fresh = each.text[max(0, self._chars - each.offset) :]
            if fresh and each.offset <= self._chars:
                yield self._delta(turn, fresh)


def _standing(pieces: list[Delta]) -> list[Delta]:
    """Return what was said since the last piece that takes something back, that piece first."""
    last = max((index for index, piece in enumerate(pieces) if piece.back), default=0)
    return pieces[last:]


def _name(event: e.AnyEvent, before: Session, turn: Turn | None) -> str:
    """The fact's name; a release that ends a turn (its GPU died while it was asked to stop) is told as that end."""
    ended = before.open_turn is not None and turn is not None and turn.ended_ms is not None
    return "turn.cancelled" if ended and isinstance(event, e.SessionReleased) else type_of(event)


def _like(said: QueueView, place: QueueView) -> bool:
    """Whether what was said of a place is not worth saying again."""
    same = (said.position, said.cold_start) == (place.position, place.cold_start)
    return same and _close(said.wait_s, place.wait_s)


def _close(told_s: float | None, wait_s: float | None) -> bool:
    """Whether a wait is not worth telling again."""
    if told_s is None or wait_s is None:
        return told_s is wait_s
    return abs(told_s - wait_s) < 1.0
