"""The file that readers open: a copy of the database, put in place while somebody asks for one."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from helix_es.analytics.schema import SNAPSHOT
from helix_projections.analytics.store import Store

WANTED = "snapshot.wanted"
"""Readers touch it."""
WISH_S = 60.0  # for so long after the last wish, snapshots are made as the log goes on
AGAIN_S = 10.0  # after one that could not be put in place
SHARE = 10  # of the time that passes, at most a tenth is spent on them


class Snapshots:
    """Says when a snapshot is due, and makes it. `now_s` are Unix seconds, as files have them."""

    def __init__(self, folder: Path, fresh_s: float) -> None:
        self._folder = folder
        self._fresh_s = fresh_s
        self._made_s = 0.0
        self._took_s = 0.0
        self._not_before_s = 0.0

    def due(self, now_s: float) -> bool:
        """Whether somebody asks and the last one is old enough."""
        try:
            wished_s = (self._folder / WANTED).stat().st_mtime
        except OSError:
            return False
        if now_s - wished_s > WISH_S or now_s < self._not_before_s:
            return False
        return now_s - self._made_s >= max(self._fresh_s, (SHARE - 1) * self._took_s)

    def make(self, store: Store) -> None:
        """Put a copy of `store` in place; nothing may write to it meanwhile. Raises OSError, duckdb.Error."""
        begun_s = time.perf_counter()
        store.checkpoint()
        part = self._folder / f"{SNAPSHOT}.part"
        try:
            _copy(store.path, part)
            part.replace(self._folder / SNAPSHOT)
        except OSError:
            with suppress(OSError):
                part.unlink()  # the database itself may need the room
            raise
        self._took_s, self._made_s = time.perf_counter() - begun_s, time.time()

    def put_off(self, now_s: float) -> None:
        """The last one failed: none is due for a while, however long ago they wished."""
        self._not_before_s = now_s + AGAIN_S

    def still_fresh(self) -> None:
        """Nothing has changed since the last one: say that it is of now. Raises OSError."""
        snapshot = self._folder / SNAPSHOT
        if snapshot.exists():
            os.utime(snapshot)
        self._made_s = time.time()


def _copy(source: Path, target: Path) -> None:
    """Copy inside the kernel; a file system that can shares the blocks."""
    size = source.stat().st_size
    with source.open("rb") as read, target.open("wb") as write:
        done = 0
        try:
            while done < size:
                done += os.copy_file_range(read.fileno(), write.fileno(), size - done)
        except OSError:  # across file systems, or none that can
            read.seek(done)
            write.seek(done)
            shutil.copyfileobj(read, write, 1 << 20)
