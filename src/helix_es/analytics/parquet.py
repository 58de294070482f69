"""The log as Parquet files: how an export is laid out, and an archive that reads one back."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from helix_es.archive import record_of
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import Recorded

EVENTS = "events"
"""Folder of the files that hold every stored message: DIR/events/day=YYYY-MM-DD/<first seq>-<last seq>.parquet."""
NAMED = re.compile(r"(\d+)-(\d+)\.parquet\Z")
TOGETHER = 20_000  # messages of one batch: large enough for the columns, small enough for the memory

SEQ, LOGGED_AT, SUBJECT, TRACE, BODY = "seq", "logged_at", "subject", "trace", "body"
BYTES = "bytes"
"""Column beside those of the table `events`: the message as it was stored, where `body` cannot say it."""
READ = [SEQ, LOGGED_AT, SUBJECT, TRACE, BODY, BYTES]


class File(NamedTuple):
    """One file of an export."""

    first_seq: int
    last_seq: int
    path: Path


class Stored(NamedTuple):
    """Messages as they were stored, column by column: the n-th of each list is about the same one."""

    seqs: list[int]
    at_ms: list[int]
    """The server's timestamps, Unix ms."""
    subjects: list[str]
    traces: list[str | None]
    """W3C `traceparent`."""
    bodies: list[bytes]


def file_name(first_seq: int, last_seq: int) -> str:
    """Return what the file with these messages is called: names sort as their messages do."""
    return f"{first_seq:012}-{last_seq:012}.parquet"


def files(folder: Path) -> list[File]:
    """Return the files of the export in `folder`, in log order; [] if it holds none.

    Raises Unreadable for a Parquet file among them that is not named as ours are.
    """
    found = []
    for path in (folder / EVENTS).glob("*/*.parquet"):
        named = NAMED.fullmatch(path.name)
        if named is None:
            raise Unreadable(
                f"{path} is no file of an export: these are called <first seq>-<last seq>.parquet"
            )
        found.append(File(int(named[1]), int(named[2]), path))
    return sorted(found)


class ParquetArchive:
    """What `helix export` wrote, as an archive; unreadable messages are in it as they were stored."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        """Yield every record after `after_seq`; see `Archive.read`."""
        batches = self.messages(after_seq)
        while (stored := await asyncio.to_thread(next, batches, None)) is not None:
            with paused():
                records = [
                    record_of(*each)
                    for each in zip(stored.seqs, stored.at_ms, stored.subjects, stored.bodies, strict=True)
                ]
            yield records

    def messages(self, after_seq: int = 0) -> Iterator[Stored]:
        """Yield every message after `after_seq`, in log order, each once.

        Raises Unreadable: a file is damaged, not ours, or one is missing; Unavailable: the export begins later.
        """
        exported = files(self._folder)
        if not exported:
            raise Unreadable(
                f"{self.name} holds no export of Helix: there is no {EVENTS}/day=…/….parquet in it"
            )
        if exported[0].first_seq > after_seq + 1:
            raise Unavailable(
                f"{self.name} begins at sequence {exported[0].first_seq}, not at {after_seq + 1}"
            )
        for each in exported:
            if each.last_seq <= after_seq:
                continue
            if each.first_seq > after_seq + 1:
                gone = f"sequences {after_seq + 1} to {each.first_seq - 1}"
                raise Unreadable(f"{self.name}: {gone} are missing before {each.path.name}")
            for stored in _messages(each, after_seq):
                yield stored
                after_seq = stored.seqs[-1]
            if after_seq != each.last_seq:
                raise Unreadable(
                    f"{each.path} ends at sequence {after_seq}, not at {each.last_seq} as it says"
                )


def _messages(file: File, after_seq: int) -> Iterator[Stored]:
    """Yield the messages of one file after `after_seq`."""
    expected = file.first_seq
    try:
        with pq.ParquetFile(file.path) as parquet:
            lacking = [name for name in READ if name not in parquet.schema_arrow.names]
            if lacking:
                raise Unreadable(f"{file.path} is no export of the log: it has no column {lacking[0]!r}")
            for batch in parquet.iter_batches(TOGETHER, columns=READ):
                with paused():
                    stored = _stored(batch)
                if stored.seqs != list(range(expected, expected + len(stored.seqs))):
                    raise Unreadable(f"{file.path} has a gap after sequence {expected - 1}")
                expected += len(stored.seqs)
                left = _after(stored, after_seq)
                if left.seqs:
                    yield left
    except (OSError, pa.ArrowException) as error:
        raise Unreadable(f"{file.path} cannot be read: {str(error).splitlines()[0]}") from error


def _stored(batch: Any) -> Stored:
    column = {name: batch.column(name) for name in READ}
    at_ms = pc.divide(column[LOGGED_AT].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()), 1000)
    bodies = column[BODY].cast(pa.binary())
    if column[BYTES].null_count < len(batch):
        bodies = pc.coalesce(column[BYTES].cast(pa.binary()), bodies)
    return Stored(
        column[SEQ].to_pylist(),
        at_ms.to_pylist(),
        column[SUBJECT].to_pylist(),
        column[TRACE].to_pylist(),
        [b"" if body is None else body for body in bodies.to_pylist()]
        if bodies.null_count
        else bodies.to_pylist(),
    )


def _after(stored: Stored, seq: int) -> Stored:
    skip = max(0, seq + 1 - stored.seqs[0]) if stored.seqs else 0
    if not skip:
        return stored
    seqs, at_ms, subjects, traces, bodies = stored
    return Stored(seqs[skip:], at_ms[skip:], subjects[skip:], traces[skip:], bodies[skip:])


@contextmanager
def paused() -> Iterator[None]:
    """Collect no garbage meanwhile: of many new objects that all stay, looking for it costs as much as making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
