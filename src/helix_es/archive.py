"""A log that is read from its beginning to its end, as often as wanted: the live one, or a file of an earlier one."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from helix_es.core.codec import decode
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import Recorded
from helix_es.log import Log

TOGETHER = 5_000  # records of one batch from a file


class Archive(Protocol):
    """Records in log order, each once, without a gap. Reading it again gives the same, and perhaps more at the end."""

    name: str
    """What to call it where something is said of it."""

    def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield every record after `after_seq`, to the end that it has now.

        Raises Unreadable: it is damaged, or has a gap; Unavailable: it cannot be reached, or begins later.
        """


class Live:
    """The log itself, up to the last record that it has when reading begins."""

    name = "the log"

    def __init__(self, log: Log) -> None:
        self._log = log
        self.missing: dict[int, int] = {}
        """Messages that were deleted by hand: the first of some in a row -> how many. They are passed over."""

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        last = await self._log.last_seq()
        if after_seq >= last:
            return
        before = after_seq
        async for batch in self._log.follow(after_seq):
            records = batch.records
            if records and before == after_seq and records[0].seq > before + 1:
                raise Unavailable(
                    f"the log begins at sequence {records[0].seq}, {before + 1} is gone: give an export that has it"
                )
            if records and records[-1].seq > last:
                records = [each for each in records if each.seq <= last]
            if records:
                if records[-1].seq - before > len(records):
                    self._note(records, before)
                before = records[-1].seq
                yield records
            if before >= last or batch.pending == 0:  # what was last may have been deleted
                return

    def _note(self, records: list[Recorded], before: int) -> None:
        for record in records:
            if record.seq > before + 1:
                self.missing[before + 1] = record.seq - before - 1
            before = record.seq


class Chained:
    """An export, and after its end another archive, as a rule the log."""

    def __init__(self, first: Archive, then: Archive) -> None:
        self.name = f"{first.name} and {then.name}"
        self._first = first
        self._then = then

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        async for records in self._first.read(after_seq):
            yield records
            after_seq = records[-1].seq
        async for records in self._then.read(after_seq):
            yield records


class _Line(msgspec.Struct):
    seq: int
    at_ms: int
    subject: str
    payload: msgspec.Raw


_PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}
"""How files begin that gzip, xz and bzip2 made -> what opens them."""


class JsonLines:
    """A file with one message a line: `{"seq", "at_ms", "subject", "payload"}`, as `make chaos` leaves it.

    It may be packed by gzip, xz or bzip2. Lines without anything are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._decoder = msgspec.json.Decoder(_Line)

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        records: list[Recorded] = []
        before = None
        try:
            for number, record in self._records():
                if before is not None and record.seq != before + 1:
                    raise Unreadable(f"{self.name}, line {number}: sequence {record.seq} after {before}")
                before = record.seq
                if record.seq <= after_seq:
                    continue
                if not records and record.seq > after_seq + 1:
                    raise Unavailable(f"{self.name} begins at sequence {record.seq}, not at {after_seq + 1}")
                records.append(record)
                if len(records) == TOGETHER:
                    yield records
                    after_seq, records = record.seq, []
        except Unreadable:
            if records:
                yield records  # whoever asks for nothing beyond them need not mind
            raise
        if records:
            yield records

    def _records(self) -> Iterator[tuple[int, Recorded]]:
        """Yield the number of each line, from 1, and its record."""
        number = 0
        try:
            with self._open() as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, self._record(number, line)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise Unreadable(f"{self.name}, after line {number}: {error}") from error

    def _open(self) -> IO[bytes]:
        with self._path.open("rb") as raw:
            begins = raw.read(max(map(len, _PACKED)))
        opener = next((opener for magic, opener in _PACKED.items() if begins.startswith(magic)), open)
        file: IO[bytes] = opener(self._path, "rb")
        return file

    def _record(self, number: int, line: bytes) -> Recorded:
        try:
            stored = self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreadable(f"{self.name}, line {number}: {error}") from error
        return record_of(stored.seq, stored.at_ms, stored.subject, bytes(stored.payload))


def record_of(seq: int, at_ms: int, subject: str, body: bytes) -> Recorded:
    """Return the record of a stored message; without an event if that is unreadable."""
    try:
        return Recorded(seq, at_ms, subject, decode(subject, body))
    except Unreadable:
        return Recorded(seq, at_ms, subject, None)
