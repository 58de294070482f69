"""A log in memory that keeps every promise of the real one, for tests and simulations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from helix_es.core.codec import decode, encode
from helix_es.core.errors import Conflict, Unreadable
from helix_es.core.events import AnyEvent, Recorded
from helix_es.core.subjects import fence_of, subject_of
from helix_es.log import Batch, Snapshot


def matches(subject: str, subject_filter: str) -> bool:
    """Return whether `subject` falls under a NATS filter with `*` and `>`."""
    have, want = subject.split("."), subject_filter.split(".")
    if want[-1] == ">":
        return len(have) >= len(want) and all(w in ("*", h) for h, w in zip(have, want[:-1], strict=False))
    return len(have) == len(want) and all(w in ("*", h) for h, w in zip(have, want, strict=True))


class InMemoryLog:
    """A `Log` without a server. `clock` gives Unix ms."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.records: list[Recorded] = []
        self._fences: dict[str, list[int]] = {}
        self._keys: dict[str, int] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._changed = asyncio.Event()

    async def append(
        self, event: AnyEvent, *, expected_seq: int, key: str, headers: Mapping[str, str] | None = None
    ) -> int:
        return self.append_now(event, expected_seq=expected_seq, key=key, headers=headers)

    def append_now(
        self, event: AnyEvent, *, expected_seq: int, key: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """The append itself, for callers outside an event loop."""
        if key in self._keys:
            return self._keys[key]
        subject = subject_of(event)
        fence = self._fences.setdefault(fence_of(subject), [0])
        if fence[-1] != expected_seq:
            raise Conflict(f"{subject}: expected sequence {expected_seq}, last is {fence[-1]}")
        seq = self._store(subject, encode(event), {"Nats-Msg-Id": key, **(headers or {})})
        self._keys[key] = seq
        return seq

    def store_raw(self, subject: str, data: bytes) -> int:
        """Store bytes as they are, past every fence: what a forger or a foreign client could do."""
        return self._store(subject, data, {})

    def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        seq = len(self.records) + 1
        try:
            event: AnyEvent | None = decode(subject, data)
        except Unreadable:
            event = None
        self.records.append(Recorded(seq, self._clock(), subject, event, headers))
        if matches(
            subject, fence := fence_of(subject)
        ):  # a stranger's subject of two words is under no fence
            self._fences.setdefault(fence, [0]).append(seq)
        self._changed.set()
        self._changed = asyncio.Event()
        return seq

    async def history(
        self, subject_filter: str, *, after_seq: int = 0, fresh: bool = False
    ) -> list[Recorded]:
        return [r for r in self.records[after_seq:] if matches(r.subject, subject_filter)]

    async def last_seq(self) -> int:
        return len(self.records)

    async def follow(self, after_seq: int, *, filters: Sequence[str] = ()) -> AsyncIterator[Batch]:
        while True:
            changed = self._changed
            fresh = self.records[after_seq:]
            after_seq += len(fresh)
            wanted = [r for r in fresh if not filters or any(matches(r.subject, f) for f in filters)]
            yield Batch(wanted, 0)
            if after_seq == len(self.records):
                await changed.wait()

    async def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        self._snapshots[name] = snapshot

    async def load_snapshot(self, name: str) -> Snapshot | None:
        return self._snapshots.get(name)
