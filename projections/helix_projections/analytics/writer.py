"""Folds on the event loop, commits on a thread: while DuckDB takes in one batch, the next one is folded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import duckdb
import msgspec

from helix_es.jetstream.follow import Message
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.failing import unavailable
from helix_projections.analytics.pulse import WINDOW_MS, Pulse
from helix_projections.analytics.store import WAL_MIB, Commit, Store

GROUP_S = 0.25  # rows wait so long for others: a commit waits for the disk
KEEP_S = 60.0  # between two kept folds while there are few messages

T = TypeVar("T")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done at once."""

    together: int = 15_000
    """Messages of one commit while there are many: twice as many are no faster, and twice the memory."""
    keep_every: int = 100_000
    """Messages between two kept folds: folding them again takes a second."""
    window_ms: int = WINDOW_MS
    """Heartbeats of so long become one row."""
    wal_mib: int = WAL_MIB
    """Of committed rows that are not in the database file itself yet."""


USUAL = Pace()


class Writer:
    """A store and the folds that fill it. `run` must run beside whoever calls `take`."""

    def __init__(self, store: Store, chronicle: Chronicle, pace: Pace = USUAL) -> None:
        self.changed = True
        """Something was committed since the owner set this to False; at first, perhaps by a process that was killed."""
        self.broken = False
        """A commit failed, or the database is unusable: nothing more is written."""
        self._store = store
        self._chronicle = chronicle
        self._pulse = Pulse(pace.window_ms)
        self._pace = pace
        self._thread = ThreadPoolExecutor(1, "duckdb")
        self._one = asyncio.Lock()
        self._some = asyncio.Event()
        self._many = asyncio.Event()
        self._taken = asyncio.Event()
        self._kept_seq = chronicle.occupancy.seq
        self._kept_s = time.monotonic()

    @property
    def seq(self) -> int:
        """The last sequence of the log that was folded."""
        return self._chronicle.occupancy.seq

    async def take(self, messages: list[Message]) -> None:
        """Fold messages of the log; waits while more than two commits' worth of them stand by."""
        apply = self._chronicle.apply
        for message in messages:
            apply(message)
        self._some.set()
        if self._chronicle.waiting >= self._pace.together:
            self._many.set()
        while self._chronicle.waiting >= 2 * self._pace.together:
            self._taken.clear()
            await self._taken.wait()

    def beat(self, messages: list[Message]) -> None:
        """Fold messages of BEATS."""
        for message in messages:
            self._pulse.apply(message)
        self._some.set()

    async def run(self) -> None:
        """Commit what there is, until cancelled. Raises Unavailable if the database takes nothing."""
        while True:
            await self._some.wait()
            try:
                async with asyncio.timeout(GROUP_S):
                    await self._many.wait()
            except TimeoutError:
                pass
            await self.commit()

    async def commit(self) -> None:
        """Commit all that was folded until now."""
        async with self._one:
            self._some.clear()
            self._many.clear()
            commit = Commit(self._chronicle.take(), self._pulse.take())
            self._taken.set()
            commit.fold = self._fold_to_keep()
            news = bool(commit.rows.count) or commit.beats is not None
            if news or commit.fold is not None:
                await self.on_thread(self._write, commit, news)

    def _write(self, commit: Commit, news: bool) -> None:
        """Runs on the thread, to its end even if whoever waits for it is cancelled."""
        if self.broken:
            return  # rows are missing before these: the next start reads all of them again
        try:
            self._store.write(commit)
        except Exception:
            self.broken = True
            raise
        self.changed |= news

    def _fold_to_keep(self) -> bytes | None:
        new = self.seq - self._kept_seq
        if not new or (new < self._pace.keep_every and time.monotonic() - self._kept_s < KEEP_S):
            return None
        self._kept_seq, self._kept_s = self.seq, time.monotonic()
        return self._chronicle.dump()

    async def on_thread(self, work: Callable[..., T], *args: object) -> T:
        """Return what `work` gives; of such calls one runs at a time. Raises Unavailable for an error of DuckDB."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        except duckdb.Error as error:
            self.broken |= isinstance(error, duckdb.FatalException)
            raise unavailable(self._store.path, error) from error

    async def finish(self) -> None:
        """Commit what is left, with the fold, so that the next start need not fold anything again."""
        self._kept_s = -KEEP_S
        await self.commit()
        await self.on_thread(lambda: None)  # a commit whose waiter was cancelled is still under way

    async def close(self) -> None:
        """Close the database."""
        await self.on_thread(self._store.close)
        self._thread.shutdown()
