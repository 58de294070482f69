"""Reads the log and the schedulers' beats of a run, as they are stored, and keeps them as lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from helix_es.core.codec import decode
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import Recorded
from helix_es.jetstream.client import Connection
from helix_es.jetstream.direct import page
from helix_es.jetstream.headers import stamp_ms

PAGE = 500
TRIES = 60
PAUSE_S = 0.5


class Line(msgspec.Struct, frozen=True):
    """A stored message."""

    seq: int
    at_ms: int
    subject: str
    payload: msgspec.Raw


_line = msgspec.json.Decoder(Line)


class Reader:
    """Reads one stream on from where it was."""

    def __init__(self, connection: Connection, stream: str, subject: str = ">") -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self.lines: list[Line] = []

    async def read(self) -> list[Line]:
        """Return what is new. Raises Unavailable when the broker does not answer for long."""
        before = len(self.lines)
        for attempt in range(TRIES):
            try:
                await self._pages()
                return self.lines[before:]
            except Unavailable:
                if attempt == TRIES - 1:
                    raise
                await asyncio.sleep(PAUSE_S)
        return []

    async def _pages(self) -> None:
        start_seq: int | None = self.lines[-1].seq + 1 if self.lines else 1
        while start_seq is not None:
            start_seq = await page(self._connection, self._stream, self._subject, start_seq, PAGE, self._take)

    def _take(self, headers: dict[str, str], data: bytes) -> None:
        seq, subject = int(headers["Nats-Sequence"]), headers["Nats-Subject"]
        if not self.lines or seq > self.lines[-1].seq:
            self.lines.append(Line(seq, stamp_ms(headers["Nats-Time-Stamp"]), subject, _json(data)))

    async def read_all(self) -> list[Line]:
        """Return everything up to the stream's last sequence: the replica that answers may lag."""
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        last = int(info["state"]["last_seq"])
        for _ in range(TRIES):
            await self.read()
            if self._subject != ">" or (self.lines[-1].seq if self.lines else 0) >= last:
                break
            await asyncio.sleep(PAUSE_S)
        return self.lines


def _json(data: bytes) -> msgspec.Raw:
    """Return the payload as it is; what is not JSON as a string, so that a line stays a line."""
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return msgspec.Raw(msgspec.json.encode(data.decode(errors="replace")))
    return msgspec.Raw(data)


def recorded(lines: Iterable[Line]) -> Iterator[Recorded]:
    """Yield the records that lines stand for; `event` is None where none can be read."""
    for line in lines:
        try:
            yield Recorded(line.seq, line.at_ms, line.subject, decode(line.subject, bytes(line.payload)))
        except Unreadable:
            yield Recorded(line.seq, line.at_ms, line.subject, None)


def save(lines: Iterable[Line], file: Path) -> None:
    """Write one line for each message."""
    with file.open("wb") as out:
        for line in lines:
            out.write(msgspec.json.encode(line) + b"\n")


def load(file: Path) -> list[Line]:
    """Read what `save` wrote."""
    return [_line.decode(line) for line in file.read_bytes().splitlines()]
