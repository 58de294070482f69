"""What a running turn says before it is over: pieces of text, in memory for a quarter of an hour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec

from helix_es.core.errors import Unavailable
from helix_es.core.subjects import delta_subject
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import parse

READ_S = 2.0
READ_BATCH = 1000


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an attempt's output."""

    session: str
    turn: int
    attempt: int
    offset: int
    """Characters of the attempt that came before."""
    text: str


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
        seq, more = 1, True
        while more:
            seq, more = await self._read_batch(delta_subject(session, turn, attempt), seq, pieces)
        return pieces

    async def _read_batch(self, subject: str, seq: int, into: list[Delta]) -> tuple[int, bool]:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        last = seq

        def sink(_subject: str, _reply: str, raw: bytes, data: bytes) -> None:
            nonlocal last
            status, headers = parse(raw)
            if status:
                if not done.done():
                    done.set_result(status == 204 and int(headers.get("Nats-Num-Pending", 0)) > 0)
                return
            last = int(headers["Nats-Sequence"])
            delta = self._decode(data)
            if delta is not None:
                into.append(delta)

        body = msgspec.json.encode({"seq": seq, "next_by_subj": subject, "batch": READ_BATCH})
        with self._connection.mail(sink) as address:
            await self._connection.publish("$JS.API.DIRECT.GET.DELTAS", body, reply=address)
            try:
                more = await asyncio.wait_for(done, READ_S)
            except TimeoutError:
                raise Unavailable(f"no answer to a read of {subject}") from None
        return last + 1, more
