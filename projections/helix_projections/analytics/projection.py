"""The process: follows both streams into the database, makes snapshots for readers, exports every hour."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import structlog

from helix_es.analytics.parquet import ParquetArchive
from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.core.errors import HelixError, Unavailable, Unreadable
from helix_es.jetstream.client import Connection
from helix_es.jetstream.follow import Message, follow_messages
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.exporting import export, of_log
from helix_projections.analytics.failing import told
from helix_projections.analytics.opening import BEATS_CREATED, Expected, Stale, anew, held, opened
from helix_projections.analytics.snapshots import Snapshots
from helix_projections.analytics.source import Source, source, stored_ms
from helix_projections.analytics.store import Store
from helix_projections.analytics.writer import USUAL, Pace, Writer

log = structlog.get_logger(__name__)

LOOK_S = 0.2  # how soon a wish for a snapshot is seen
SAME_LOG_S = 5.0  # how often we ask whether the stream is still the one that it was


class Replaced(HelixError):
    """The log was deleted and made anew, or lost its end: the tables are of another one."""

    code = "log_replaced"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do."""

    folder: Path
    """Of the database and its snapshot."""
    parquet: Path
    """Where exports go, and what is read of a log that has lost its beginning."""
    export_every_s: float = 0.0
    """0: never."""
    fresh_s: float = 2.0
    """At most so often a snapshot is made."""
    once: bool = False
    """End when all that there is, is in the tables."""
    pace: Pace = USUAL


class Projection:
    """Follows LOG and BEATS until it is cancelled."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan

    async def run(self) -> None:
        """Work. Raises Misconfigured if the folder is another's; Unavailable if the database takes nothing."""
        with held(self._plan.folder):
            while True:
                try:
                    await self._serve()
                    return
                except* Replaced as group:
                    log.warning("analytics_begins_anew", reason=str(group.exceptions[0]))

    async def _serve(self) -> None:
        source_ = await source(self._connection, "LOG")
        store, chronicle = await self._opened(source_)
        writer = Writer(store, chronicle, self._plan.pace)
        following = _Following(self._connection, self._plan, writer, store, source_)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in following.work()]
                await following.caught_up()
                log.info("analytics_caught_up", seq=writer.seq)
                if self._plan.once:
                    for task in tasks:
                        task.cancel()
        finally:
            await following.end()

    async def _opened(self, of: Source) -> tuple[Store, Chronicle]:
        plan = self._plan
        expected = Expected(of.created, of.last_seq, plan.pace.wal_mib)
        with told(plan.folder / DATABASE):
            store, chronicle = await asyncio.to_thread(opened, plan.folder, expected)
        seq, at_ms = store.reached("LOG")
        found_ms = await stored_ms(self._connection, "LOG", seq) if seq else None
        if found_ms not in (None, at_ms):
            store.close()
            stale = Stale("other-log", f"sequence {seq} of the log is another message than the tables have")
            with told(plan.folder / DATABASE):
                return anew(plan.folder, stale, expected), Chronicle()
        return store, chronicle


class _Following:
    """One database, while it is open."""

    def __init__(
        self, connection: Connection, plan: Plan, writer: Writer, store: Store, source_: Source
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._writer = writer
        self._store = store
        self._source = source_
        self._snapshots = Snapshots(plan.folder, plan.fresh_s)
        self._log_read = asyncio.Event()
        self._beats_read = asyncio.Event()

    def work(self) -> list[Coroutine[None, None, None]]:
        """Return what must run at the same time."""
        works = [self._follow_log(), self._follow_beats(), self._writer.run(), self._make_snapshots()]
        return [*works, self._export(), self._watch()]

    async def caught_up(self) -> None:
        """Return when the tables hold all that the streams held, and readers have them."""
        await self._log_read.wait()
        await self._beats_read.wait()
        await self._writer.commit()
        await self._snapshot()

    async def end(self) -> None:
        """Commit what is left, leave a snapshot of it, close."""
        try:
            if not self._writer.broken:  # else that is what must be told
                await self._writer.finish()
                if self._writer.changed:
                    await self._snapshot()
        finally:
            await self._writer.close()

    async def _follow_log(self) -> None:
        await self._read_what_is_gone()
        async for messages, pending in follow_messages(self._connection, "LOG", self._writer.seq):
            await self._take(messages)
            if not pending:
                self._log_read.set()

    async def _read_what_is_gone(self) -> None:
        """Read from the export what the log does not have any more."""
        first, folder = self._source.first_seq, self._plan.parquet
        if self._writer.seq + 1 >= first or not of_log(folder, self._source.created):
            return
        log.info("analytics_reads_export", folder=str(folder), until=first - 1)
        batches = ParquetArchive(folder).messages(self._writer.seq)
        try:
            while self._writer.seq + 1 < first:
                stored = await asyncio.to_thread(next, batches, None)
                if stored is None:
                    return
                messages = [Message(*each) for each in zip(*stored, strict=True)]
                await self._take([each for each in messages if each.seq < first])
        except (Unreadable, Unavailable) as error:
            log.warning("export_unreadable", error=str(error))

    async def _take(self, messages: list[Message]) -> None:
        """Fold messages that come next, and say what is missing before and between them."""
        if not messages:
            return
        after = self._writer.seq
        if missing := messages[-1].seq - after - len(messages):
            _say_gap([after, *(message.seq for message in messages)], missing)
        await self._writer.take(messages)

    async def _follow_beats(self) -> None:
        beats = await source(self._connection, "BEATS")
        position = await self._writer.on_thread(_beats_position, self._store, beats)
        async for messages, pending in follow_messages(self._connection, "BEATS", position):
            self._writer.beat(messages)
            if not pending:
                self._beats_read.set()

    async def _make_snapshots(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._snapshots.due(time.time()):
                await self._writer.commit()
                await self._snapshot()

    async def _snapshot(self) -> None:
        try:
            await self._writer.on_thread(self._publish)
        except OSError as error:
            self._snapshots.put_off(time.time())
            log.warning("snapshot_failed", folder=str(self._plan.folder), error=str(error))

    def _publish(self) -> None:
        """Runs on the thread, as commits do: whoever waits for it may be cancelled, and nothing is half said."""
        if not self._writer.changed and (self._plan.folder / SNAPSHOT).exists():
            self._snapshots.still_fresh()
            return
        self._snapshots.make(self._store)
        self._writer.changed = False

    async def _export(self) -> None:
        every_s = self._plan.export_every_s
        await self._log_read.wait()
        while every_s > 0:
            await asyncio.sleep(every_s - time.time() % every_s)
            await self._writer.commit()
            try:
                done = await self._writer.on_thread(export, self._store.run, self._plan.parquet)
                log.info("analytics_exported", events=done.events, last_seq=done.last_seq)
            except (HelixError, OSError) as error:
                log.warning("export_failed", folder=str(self._plan.parquet), error=str(error))

    async def _watch(self) -> None:
        """Raises Replaced when the log is another one than it was."""
        while True:
            await asyncio.sleep(SAME_LOG_S)
            now = await source(self._connection, "LOG")
            if now.created != self._source.created:
                raise Replaced(f"the log was made anew at {now.created}")
            if now.last_seq < self._writer.seq:
                raise Replaced(f"the log ends at {now.last_seq}, {self._writer.seq} was read from it")


def _beats_position(store: Store, beats: Source) -> int:
    """Return where to go on in BEATS; from its beginning if it was made anew."""
    position, _ = store.reached("BEATS")
    if store.meta().get(BEATS_CREATED) == beats.created and position <= beats.last_seq:
        return position
    store.begin_anew("BEATS", BEATS_CREATED, beats.created)
    return 0


def _say_gap(seqs: list[int], missing: int) -> None:
    """Say once which of the log's messages are not among `seqs`, the first of which is the last that was there."""
    holes = [(a + 1, b - 1) for a, b in itertools.pairwise(seqs) if b > a + 1]
    log.warning(
        "analytics_gap",
        **{"from": holes[0][0], "to": holes[-1][1]},
        missing=missing,
        reason="the log was truncated or messages were deleted, and no export has them: the tables lack them",
    )
