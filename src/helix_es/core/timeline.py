"""Any instant of a log: the state after every record up to it, found forwards or backwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import NamedTuple

from helix_es.core.errors import Rejected
from helix_es.core.events import Recorded
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump, load

EVERY = 50_000  # records between snapshots: folding that many takes half a second
MOST_KEPT = 32  # snapshots; when there are more, every second one goes, so that memory stays flat
NO_END = 1 << 62

Read = Callable[[int], AsyncIterator[list[Recorded]]]
"""Gives what comes after a sequence, to the end that there is now; as `Archive.read`."""


class _Kept(NamedTuple):
    seq: int
    folded_ms: int
    """Timestamp of its newest record."""
    data: bytes


class Timeline:
    """Reads forwards, and keeps snapshots on the way to go back to.

    What the seeks return is the timeline's own state: it is good until the next seek.
    """

    def __init__(
        self, read: Read, *, every: int = EVERY, watch: Callable[[Recorded, Occupancy], None] | None = None
    ) -> None:
        self._read = read
        self._every = every
        self._watch = watch
        """Gets every record that was folded, with the state after it; after going back it gets them again."""
        self._state = Occupancy()
        self._kept: list[_Kept] = []
        self._reading: AsyncIterator[list[Recorded]] | None = None
        self._batch: list[Recorded] = []
        self._index = 0
        self.first: Recorded | None = None
        """The log's first record, once something was read."""

    async def at_seq(self, seq: int) -> Occupancy:
        """Return the state after the record `seq`.

        Raises Rejected: before the beginning or after the end; and what the reading raises.
        """
        if seq < 1:
            raise Rejected("before_beginning", f"there is no sequence {seq}: the log begins at 1")
        await self._start([each for each in self._kept if each.seq <= seq], back=self._state.seq > seq)
        await self._fold(upto_seq=seq, upto_ms=NO_END)
        if self._state.seq < seq:
            if self._peeked() is not None:
                raise Rejected("no_such_sequence", f"sequence {seq} is not in the log: it was deleted")
            raise Rejected("after_end", f"there is no sequence {seq} yet: the log ends at {self._state.seq}")
        return self._state

    async def at_ms(self, at_ms: int, *, upto_seq: int = NO_END) -> Occupancy:
        """Return the state after the records stored until `at_ms` (Unix ms), with the clock there.

        If the server's clock went back, that is up to the first record that was stored later. After the end it is the
        state at the end. It does not go beyond the record `upto_seq`: there the clock is that record's. Raises
        Rejected: before the beginning; and what the reading raises.
        """
        kept = [each for each in self._kept if each.folded_ms <= at_ms and each.seq <= upto_seq]
        await self._start(kept, back=self._state.folded_ms > at_ms or self._state.seq > upto_seq)
        await self._fold(upto_seq=upto_seq, upto_ms=at_ms)
        if not self._state.seq:
            said = "the log is empty" if self.first is None else "the log begins later"
            raise Rejected("before_beginning", said)
        if self._state.seq < upto_seq:
            self._state.tick(at_ms)
        return self._state

    async def end(self) -> Occupancy:
        """Return the state after the last record that there is now. Raises what the reading raises."""
        await self._start(self._kept, back=False)
        await self._fold(upto_seq=NO_END, upto_ms=NO_END)
        return self._state

    async def next_ms(self) -> int | None:
        """Return the timestamp of the record after the state, Unix ms; None if there is none now."""
        self._open()
        if await self._more():
            return self._batch[self._index].at_ms
        return None

    async def close(self) -> None:
        """Stop reading. The timeline can be used again."""
        reading, self._reading = self._reading, None
        self._batch, self._index = [], 0
        if isinstance(reading, AsyncGenerator):
            await reading.aclose()

    # -- where to begin

    async def _start(self, kept: list[_Kept], *, back: bool) -> None:
        """Go on from the state as it is, or from the last of `kept` if that is nearer; `back`: the state is too far."""
        best = kept[-1] if kept else None
        if back or (best is not None and best.seq > self._state.seq):
            await self.close()
            self._state = Occupancy() if best is None else load(best.data)
        self._state.now_ms = self._state.folded_ms  # the clock of an earlier seek is not the log's
        self._open()

    def _open(self) -> None:
        if self._reading is None and self._peeked() is None:
            self._reading = self._read(self._state.seq)

    # -- reading and folding

    async def _fold(self, *, upto_seq: int, upto_ms: int) -> None:
        while self._state.seq < upto_seq and await self._more():
            if self._fold_batch(upto_seq, upto_ms):
                return

    def _fold_batch(self, upto_seq: int, upto_ms: int) -> bool:
        """Fold what was read; True if it goes further than wanted."""
        apply, watch = self._state.apply, self._watch
        next_kept = self._kept[-1].seq + self._every if self._kept else self._every
        for index in range(self._index, len(self._batch)):
            record = self._batch[index]
            if record.seq > upto_seq or record.at_ms > upto_ms:
                self._index = index
                return True
            apply(record)
            if watch is not None:
                watch(record, self._state)
            if record.seq >= next_kept:
                next_kept = self._keep()
        self._index = len(self._batch)
        return False

    def _keep(self) -> int:
        """Keep the state; return the sequence at which to do so next."""
        self._kept.append(_Kept(self._state.seq, self._state.folded_ms, dump(self._state)))
        if len(self._kept) > MOST_KEPT:
            self._kept = self._kept[1::2]
            self._every *= 2
        return self._kept[-1].seq + self._every

    def _peeked(self) -> Recorded | None:
        return self._batch[self._index] if self._index < len(self._batch) else None

    async def _more(self) -> bool:
        """Whether there is a record to fold; reads it if need be."""
        while self._index >= len(self._batch):
            if self._reading is None:
                return False
            try:
                self._batch, self._index = await anext(self._reading), 0
            except StopAsyncIteration:
                self._reading = None
                return False
            if self.first is None and self._batch:
                self.first = self._batch[0]
        return True
