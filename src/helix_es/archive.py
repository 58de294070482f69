"""A log that is read from its beginning to its end, as often as wanted: the live one, or a file of an earlier one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

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


class JsonLines:
    """A file with one message a line: `{"seq", "at_ms", "subject", "payload"}`, as `make chaos` leaves it."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._decoder = msgspec.json.Decoder(_Line)

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        records: list[Recorded] = []
        before = None
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = self._record(number, line)
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
        if records:
            yield records

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
