"""A process's own copy of the occupancy, kept up to date from the log; others can wait for it or listen in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from helix_es.core.errors import Unreadable
from helix_es.core.events import Recorded
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump, load
from helix_es.core.subjects import about
from helix_es.log import Log, Snapshot

log = structlog.get_logger(__name__)

SNAPSHOT = "occupancy"
QUIET_S = 0.003  # three appends: whoever was about to write has done so

Listener = Callable[[Recorded], None]


class Replica:
    """Folds the log from the last snapshot on. `state` is only ever changed between two awaits."""

    def __init__(self, source: Log, *, from_snapshot: bool = True) -> None:
        self._log = source
        self._from_snapshot = from_snapshot
        self.state = Occupancy()
        self.caught_up = asyncio.Event()
        self.snapshot_seq = 0
        self._moved_s = 0.0
        self._changed = asyncio.Event()
        self._everything: list[Listener] = []
        self._sessions: dict[str, list[Listener]] = {}

    async def run(self) -> None:
        """Follow for ever."""
        if self._from_snapshot:
            await self._restore()
        async for batch in self._log.follow(self.state.seq):
            for record in batch.records:
                self._take(record)
            if batch.records:
                self._moved_s = asyncio.get_running_loop().time()
            if batch.pending == 0:
                self.caught_up.set()
            self._notify()

    async def _restore(self) -> None:
        snapshot = await self._log.load_snapshot(SNAPSHOT)
        if snapshot is None:
            return
        try:
            state = load(snapshot.data)
        except Unreadable as error:
            log.warning("snapshot_unusable", error=str(error))
            return
        if state.seq > await self._log.last_seq():
            log.warning("snapshot_of_another_log", seq=state.seq)
            return
        self.state, self.snapshot_seq = state, state.seq

    def _take(self, record: Recorded) -> None:
        self.state.apply(record)
        for listener in self._everything:
            listener(record)
        root, name = about(record.subject)
        if root == "session":
            for listener in self._sessions.get(name, ()):
                listener(record)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def tick(self, now_ms: int) -> None:
        """Move the clock to a stored beat."""
        self.state.tick(now_ms)
        self._notify()

    def next_seq(self) -> int | None:
        """Return the sequence that the next record will most likely have; None while the log is busy."""
        quiet_s = asyncio.get_running_loop().time() - self._moved_s
        return self.state.seq + 1 if self.caught_up.is_set() and quiet_s > QUIET_S else None

    def changed(self) -> asyncio.Event:
        """Return an event that is set at the next change. Take it before looking at `state`."""
        return self._changed

    async def reached(self, seq: int, timeout_s: float) -> bool:
        """Wait until `seq` is folded; False if it takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.state.seq < seq:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every record that is folded from now on."""
        self._everything.append(listener)

    @contextmanager
    def subscription(self, session: str, listener: Listener) -> Iterator[None]:
        """Call `listener` with every record of `session` that is folded while the context lasts."""
        listeners = self._sessions.setdefault(session, [])
        listeners.append(listener)
        try:
            yield
        finally:
            listeners.remove(listener)
            if not listeners and self._sessions.get(session) is listeners:
                del self._sessions[session]

    async def save(self) -> None:
        """Save a snapshot of the state as it is now."""
        seq, data = self.state.seq, dump(self.state)
        await self._log.save_snapshot(SNAPSHOT, Snapshot(seq, data))
        self.snapshot_seq = seq
