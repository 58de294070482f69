"""Follow a stream without a gap: a throw-away pull consumer that is made anew whenever anything looks odd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec
import structlog

from helix_es.core.codec import decode
from helix_es.core.errors import HelixError, Unavailable, Unreadable
from helix_es.core.events import Recorded
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import parse
from helix_es.log import Batch

log = structlog.get_logger(__name__)

PULL = 1000
OUTSTANDING = 3 * PULL  # three pulls on their way keep the server busy while we fold
EXPIRES_S = 30
HEARTBEAT_S = 1.0  # the server says so often that it is there
SILENCE_S = 3.0  # three of them missing: make the consumer anew
RETRY_S = 0.2
TRACE = b"\r\ntraceparent:"


T = TypeVar("T")

Make = Callable[[int, int, str, bytes, bytes], T]
"""Of a message: sequence, Unix ms, subject, headers as they came, body -> what the follower gets."""


class Message(NamedTuple):
    """A stored message as it is, for whoever keeps the bytes too."""

    seq: int
    at_ms: int
    """The server's timestamp, Unix ms."""
    subject: str
    trace: str | None
    """W3C `traceparent`."""
    body: bytes


def recorded(seq: int, at_ms: int, subject: str, headers: bytes, data: bytes) -> Recorded:
    """Return the fact in a message; one without if it is unreadable."""
    try:
        event = decode(subject, data)
    except Unreadable as error:
        log.warning("unreadable_message", seq=seq, subject=subject, error=str(error)[:200])
        event = None
    if TRACE in headers:
        return Recorded(seq, at_ms, subject, event, {"traceparent": _trace(headers)})
    return Recorded(seq, at_ms, subject, event)


def message(seq: int, at_ms: int, subject: str, headers: bytes, data: bytes) -> Message:
    """Return the message itself."""
    trace = _trace(headers) if TRACE in headers else None
    return _new(Message, (seq, at_ms, subject, trace, data))  # half the time of calling Message


_new = tuple.__new__


class _Reader(Generic[T]):
    """What came in since the iterator last looked; filled inside the connection's reader."""

    def __init__(self, after_seq: int, make: Make[T]) -> None:
        self._make = make
        self.records: list[T] = []
        self.seq = after_seq
        self.delivered = 0
        self.asked = 0
        """Messages that the server was asked for, delivered ones included."""
        self.broken = ""
        self.arrived = asyncio.Event()
        self._pending = "0"

    @property
    def outstanding(self) -> int:
        return self.asked - self.delivered

    @property
    def pending(self) -> int:
        """How many more the server had when it sent the last one."""
        return int(self._pending)

    def sink(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivery>.<ns>.<pending>, or a status without a reply
        if not reply.startswith("$JS.ACK."):
            self._status(headers)
            self.arrived.set()
            return
        _, seq, delivered, stamp_ns, self._pending = reply.rsplit(".", 4)
        self.delivered += 1
        if int(delivered) != self.delivered:
            self.broken = self.broken or f"gap: delivery {delivered} where {self.delivered} comes next"
        if self.broken:
            self.arrived.set()
            return
        self.seq = number = int(seq)
        if not self.records:  # otherwise somebody was told already
            self.arrived.set()
        self.records.append(self._make(number, int(stamp_ns) // 1_000_000, subject, headers, data))

    def _status(self, raw: bytes) -> None:
        status, headers = parse(raw)
        if status == 100:
            return
        if status == 408:
            self.asked -= int(headers.get("Nats-Pending-Messages", PULL))
            return
        self.broken = f"status {status}"


def _trace(headers: bytes) -> str:
    """Return the one header that a follower may pass on; parsing all of them would halve the speed."""
    return headers.partition(TRACE)[2].partition(b"\r\n")[0].decode(errors="replace").strip()


async def follow(
    connection: Connection, stream: str, after_seq: int, filters: Sequence[str] = ()
) -> AsyncIterator[Batch]:
    """Yield all of `stream` after `after_seq`, for ever; see `Log.follow`."""
    async for records, pending in _follow(connection, stream, after_seq, filters, recorded):
        yield Batch(records, pending)


async def follow_messages(
    connection: Connection, stream: str, after_seq: int
) -> AsyncIterator[tuple[list[Message], int]]:
    """Yield all of `stream` as it is stored, with how many more there were, as `follow` does."""
    async for each in _follow(connection, stream, after_seq, (), message):
        yield each


async def _follow(
    connection: Connection, stream: str, after_seq: int, filters: Sequence[str], make: Make[T]
) -> AsyncIterator[tuple[list[T], int]]:
    while True:
        try:
            async for records, pending, seq in _attempt(connection, stream, after_seq, filters, make):
                after_seq = max(after_seq, seq)
                yield records, pending
        except HelixError as error:
            log.warning("follow_restarts", stream=stream, after_seq=after_seq, error=str(error))
        await asyncio.sleep(RETRY_S)


async def _attempt(
    connection: Connection, stream: str, after_seq: int, filters: Sequence[str], make: Make[T]
) -> AsyncIterator[tuple[list[T], int, int]]:
    reader = _Reader(after_seq, make)
    inbox = connection.nc.new_inbox()
    sub = await connection.sink(inbox, reader.sink)
    try:
        consumer, pending = await _create(connection, stream, after_seq, filters)
        if pending == 0:
            yield [], 0, after_seq
        pull = msgspec.json.encode(
            {"batch": PULL, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        )
        while True:
            while reader.outstanding <= OUTSTANDING - PULL:
                await connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", pull, reply=inbox)
                reader.asked += PULL
            try:
                async with asyncio.timeout(SILENCE_S):
                    await reader.arrived.wait()
            except TimeoutError:
                raise Unavailable(f"{stream} was silent for {SILENCE_S} s") from None
            reader.arrived.clear()
            records, reader.records = reader.records, []
            if records:
                yield records, reader.pending, reader.seq
            if reader.broken:
                raise Unavailable(f"{stream}: {reader.broken}")
    finally:
        await connection.unsink(sub)


async def _create(
    connection: Connection, stream: str, after_seq: int, filters: Sequence[str]
) -> tuple[str, int]:
    """Return the consumer's name and how many messages wait for it."""
    name = f"follow-{connection.nc.new_inbox().rsplit('.', 1)[-1]}"
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": after_seq + 1,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": int(30e9),  # then the server forgets it: no role may delete consumers of LOG
    }
    if filters:
        config["filter_subjects"] = list(filters)
    body = {"stream_name": stream, "action": "create", "config": config}
    made = await connection.api(f"CONSUMER.CREATE.{stream}.{name}", body)
    return name, int(made["num_pending"])
