"""What a running turn says before it is over: pieces of text, in memory for a quarter of an hour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from helix_es.core.subjects import delta_subject
from helix_es.jetstream.client import Connection
from helix_es.jetstream.direct import page

READ_BATCH = 1000


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far an attempt is; each one takes the place of the one before."""

    step: int
    steps: int
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    preview: str = ""
    """A small PNG of what there is so far, in base64; empty: none."""


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of an attempt's output, or a step on its way."""

    session: str
    turn: int
    attempt: int
    offset: int = 0
    """Characters of the attempt that came before."""
    text: str = ""
    """Empty, where there is no step either: what was said from `offset` on does not count."""
    step: Step | None = None

    @property
    def back(self) -> bool:
        """Whether it takes back what stands from `offset` on."""
        return not self.text and self.step is None


class Deltas:
    """The subjects `delta.<sid>.<turn>.<attempt>` and the stream that remembers them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._decoder = msgspec.json.Decoder(Delta)

    async def publish(self, delta: Delta) -> None:
        """Send a piece without waiting: the whole output will be a fact in the log."""
        subject = delta_subject(delta.session, delta.turn, delta.attempt)
        await self._connection.publish(subject, msgspec.json.encode(delta))

    @asynccontextmanager
    async def listen(self, session: str, listener: Callable[[Delta], None]) -> AsyncIterator[None]:
        """Call `listener` with the session's pieces as they are published, once this is entered."""

        def sink(_subject: str, _reply: str, _headers: bytes, data: bytes) -> None:
            delta = self._decode(data)
            if delta is not None:
                listener(delta)

        sub = await self._connection.sink(f"delta.{session}.*.*", sink)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):  # a client that went away cancels us here
                await self._connection.unsink(sub)

    def _decode(self, data: bytes) -> Delta | None:
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError:
            return None

    async def read(self, session: str, turn: int, attempt: int) -> list[Delta]:
        """Return the pieces of one attempt that are still remembered, in order; [] if none are."""
        pieces: list[Delta] = []

        def take(_headers: dict[str, str], data: bytes) -> None:
            if (delta := self._decode(data)) is not None:
                pieces.append(delta)

        subject = delta_subject(session, turn, attempt)
        start_seq: int | None = 1
        while start_seq is not None:
            start_seq = await page(self._connection, "DELTAS", subject, start_seq, READ_BATCH, take)
        return pieces
