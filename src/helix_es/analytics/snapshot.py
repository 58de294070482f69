"""The wish for a new snapshot: the writer of the database makes one only while somebody asks."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from helix_es.analytics.schema import SNAPSHOT

WANTED = "snapshot.wanted"
"""A file beside the snapshot; its mtime is when one was wished for last."""
PATIENCE_S = 1.0  # the writer looks five times a second; a copy takes a tenth of a second
VAIN_S = 10.0  # nobody waits again for a writer that made none: the log stands still, or it is gone
LOOK_EVERY_S = 0.05

Identity = tuple[int, int]


class Wishes:
    """Wishes for snapshots in one folder, and waits for them."""

    def __init__(self, folder: Path, fresh_s: float) -> None:
        self._folder = folder
        self._fresh_s = fresh_s
        self._vain: tuple[Identity | None, float] | None = None

    async def wish(self) -> None:
        """Return when the snapshot is new enough, or no newer one can be had within a second. Raises nothing."""
        with suppress(OSError):  # a folder that only others may write, or that is not there
            (self._folder / WANTED).touch()
        was = self._identity()
        if self._fresh(was) or self._in_vain(was):
            return
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._identity() != was:
                return
        self._vain = (was, time.monotonic() + VAIN_S)

    def _fresh(self, found: Identity | None) -> bool:
        return found is not None and time.time() - found[1] / 1e9 <= self._fresh_s

    def _in_vain(self, found: Identity | None) -> bool:
        return self._vain is not None and self._vain[0] == found and time.monotonic() < self._vain[1]

    def _identity(self) -> Identity | None:
        try:
            found = (self._folder / SNAPSHOT).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
