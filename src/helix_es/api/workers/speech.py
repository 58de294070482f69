"""What a worker's turn says before it is over: each piece is stored before it is acknowledged, behind the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from helix_es.api.workers.recent import Recent
from helix_es.api.workers.reports import MOST_CHARS, too_large
from helix_es.api.workers.taskid import TaskId
from helix_es.core.errors import Conflict, Unavailable
from helix_es.core.subjects import delta_subject
from helix_es.jetstream.client import ApiError, Connection, translate
from helix_es.jetstream.deltas import READ_BATCH, Delta, Step
from helix_es.jetstream.direct import get, page
from helix_es.jetstream.headers import stamp_ms

MOST_KNOWN = 10_000
FACT_EVERY_S = 1.0  # what is in between is told, but not kept
STEP_EVERY_S = 0.05  # what is in between is not even told: each takes the place of the one before
MOST_TOLD_CHARS = (
    4 * MOST_CHARS
)  # of one attempt, begun anew as it may be: all of it is in the broker's memory
STORE_S = 2.0
ATTEMPTS = 100  # at a piece: a worker has few connections


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt has said."""

    text: str | None
    """None: it began before what is remembered, or something was lost."""
    first_ms: int | None
    """When it began to speak, Unix ms on the server's clock."""


class _Said:
    """How far the words of an attempt have come, as this process knows."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.chars = 0
        self.seq: int | None = None
        """Of the last piece; None: to be read, since another replica may have stored some."""
        self.told_chars = 0
        self.step_s = self.noted_s = float("-inf")


class _Ack(msgspec.Struct):
    seq: int = 0
    error: dict[str, int | str] | None = None


class Speech:
    """The pieces of all attempts, on `delta.<session>.<turn>.<attempt>`.

    A worker may reach another replica with each piece. So a piece is fenced by the sequence of the one before, as
    facts are: whoever has not seen the newest is refused and reads it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._said: Recent[TaskId, _Said] = Recent(MOST_KNOWN, _Said)
        self._acks = msgspec.json.Decoder(_Ack)
        self._deltas = msgspec.json.Decoder(Delta)

    async def say(self, task: TaskId, text: str, offset: int | None) -> None:
        """Tell the next piece: at `offset` characters, or after all that was said. Raises Rejected, Unavailable."""

        def piece(chars: int) -> Delta:
            begin = chars if offset is None else offset
            if begin + len(text) > MOST_CHARS or said.told_chars + len(text) > MOST_TOLD_CHARS:
                raise too_large()
            return _delta(task, offset=begin, text=text)

        said = self._said[task]
        if offset is not None:
            piece(offset)  # refused before anything is taken back
            await self._back_to(task, offset)
        await self._tell(task, piece)
        said.told_chars += len(text)

    async def step(self, task: TaskId, step: Step) -> bool:
        """Tell a step, unless one was told a moment ago; return whether it is time to make it a fact."""
        said, now_s = self._said[task], asyncio.get_running_loop().time()
        if now_s - said.step_s < STEP_EVERY_S:
            return False
        said.step_s = now_s
        await self._tell(task, lambda chars: _delta(task, offset=chars, step=step))
        if now_s - said.noted_s < FACT_EVERY_S:
            return False
        said.noted_s = now_s
        return True

    async def begin_anew(self, task: TaskId) -> None:
        """The worker starts the attempt from its beginning: what it says next stands at 0, at every replica."""
        self._said[task].seq = None
        await self._back_to(task, 0)

    async def _back_to(self, task: TaskId, offset: int) -> None:
        """Tell that what was said from `offset` on does not count, if anything was: a piece without a text."""
        said = self._said[task]
        async with said.lock:
            if said.seq is None:
                await self._catch_up(task, said)
        if said.chars > offset:
            await self._tell(task, lambda chars: _delta(task, offset=offset))

    async def whole(self, task: TaskId) -> Words:
        """Return all that was said. Raises Unavailable."""
        text = _Text()
        first_ms: list[int] = []

        def take(headers: dict[str, str], data: bytes) -> None:
            delta = self._decoded(data)
            if delta is not None and delta.step is None:
                first_ms.append(stamp_ms(headers["Nats-Time-Stamp"]))
                text.add(delta)

        subject = delta_subject(task.session, task.turn, task.attempt)
        start_seq: int | None = 1
        while start_seq is not None:
            start_seq = await page(self._connection, "DELTAS", subject, start_seq, READ_BATCH, take)
        whole = text.whole()
        if whole is not None and len(whole) < self._said[task].chars:
            whole = None
        return Words(text=whole, first_ms=first_ms[0] if first_ms else None)

    async def _tell(self, task: TaskId, make: Callable[[int], Delta]) -> None:
        said = self._said[task]
        async with said.lock:
            for _ in range(ATTEMPTS):
                if said.seq is None:
                    await self._catch_up(task, said)
                delta, fence = make(said.chars), said.seq or 0
                said.seq = None  # until we know better
                try:
                    said.seq = await self._store(delta, fence)
                except Conflict:
                    continue
                said.chars = delta.offset + len(delta.text)
                return
        raise Unavailable(f"somebody else keeps speaking for task {task}")

    async def _catch_up(self, task: TaskId, said: _Said) -> None:
        """Read the last piece; if none is remembered any more, what we know ourselves is the best there is."""
        said.seq = 0

        def take(headers: dict[str, str], data: bytes) -> None:
            said.seq = int(headers["Nats-Sequence"])
            delta = self._decoded(data)
            if delta is not None:
                said.chars = delta.offset + len(delta.text)

        subject = delta_subject(task.session, task.turn, task.attempt)
        await get(self._connection, "DELTAS", {"multi_last": [subject], "batch": 1}, take)

    async def _store(self, delta: Delta, fence: int) -> int:
        subject = delta_subject(delta.session, delta.turn, delta.attempt)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(fence)}
        answer = await self._connection.request(subject, msgspec.json.encode(delta), headers, timeout=STORE_S)
        try:
            ack = self._acks.decode(answer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{subject}: an answer that is no acknowledgement") from error
        if ack.error is not None:
            raise translate(ApiError(dict(ack.error)), subject)
        return ack.seq

    def _decoded(self, data: bytes) -> Delta | None:
        try:
            return self._deltas.decode(data)
        except msgspec.DecodeError:
            return None  # forged: every reader passes it over


class _Text:
    """A text put together from pieces at their places."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._chars = 0
        self._gap = False

    def add(self, delta: Delta) -> None:
        if delta.offset == 0:
            self._parts, self._gap = [], False
        elif delta.offset > self._chars:
            self._gap = True
            return
        elif delta.offset < self._chars:
            self._parts = ["".join(self._parts)[: delta.offset]]
        self._parts.append(delta.text)
        self._chars = delta.offset + len(delta.text)

    def whole(self) -> str | None:
        return None if self._gap else "".join(self._parts)


def _delta(task: TaskId, *, offset: int = 0, text: str = "", step: Step | None = None) -> Delta:
    return Delta(
        session=task.session, turn=task.turn, attempt=task.attempt, offset=offset, text=text, step=step
    )
