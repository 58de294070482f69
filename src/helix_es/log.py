"""The log as the rest of the program sees it: append behind a fence, read one session, follow everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from helix_es.core.events import AnyEvent, Recorded


class Batch(msgspec.Struct, frozen=True):
    """Records in log order, and how many more the log held when they were read."""

    records: list[Recorded]
    pending: int
    """0: the follower has caught up."""


class Snapshot(msgspec.Struct, frozen=True):
    """Bytes of a fold, and the log sequence it was folded to."""

    seq: int
    data: bytes


class Log(Protocol):
    """One total order of facts. Every implementation passes tests/jetstream/test_log_conformance.py."""

    async def append(
        self, event: AnyEvent, *, expected_seq: int, key: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """Store `event` if the last message under its fence is still `expected_seq` (0: none); return its sequence.

        `key` makes it idempotent: repeating an append that was stored returns the first one's sequence, even if
        others have appended since. Raises Conflict: somebody else was first; LogFull: no room; Unavailable: no
        answer, and whether it was stored is unknown: repeat it with the same key.
        """

    async def history(
        self, subject_filter: str, *, after_seq: int = 0, fresh: bool = False
    ) -> list[Recorded]:
        """Return all records under `subject_filter` above `after_seq`, in order, with headers.

        `fresh`: with everything that was acknowledged before the call. Otherwise the newest may be missing, where a
        replica answers that lags. Raises Unavailable.
        """

    async def last_seq(self) -> int:
        """Return the sequence of the newest record, 0 for an empty log."""

    def follow(self, after_seq: int, *, filters: Sequence[str] = ()) -> AsyncIterator[Batch]:
        """Yield everything after `after_seq`, for ever: each record once, in order, without a gap.

        A batch with pending 0 comes as soon as the end is reached, even if it is empty.
        """

    async def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Keep `snapshot` in place of the one that had its name."""

    async def load_snapshot(self, name: str) -> Snapshot | None:
        """Return the snapshot called `name`, or None if there is none or it is damaged."""
