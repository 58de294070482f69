"""The configuration file while it is in use: a change is taken in as it is saved, a wrong one is told and left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from helix_es.core.errors import Misconfigured
from helix_es.settings import Settings, read

log = structlog.get_logger(__name__)

LOOK_S = 0.5


class SettingsFile:
    """The settings in a file that may change, or fixed ones. `now` is what holds at the moment."""

    def __init__(self, path: str | Path | None = None, *, settings: Settings | None = None) -> None:
        """Read the file. Raises Misconfigured with the key that is wrong."""
        self._path = None if path is None else Path(path)
        self._seen = self._stamp()
        self.now = settings if settings is not None else read(path)

    def _stamp(self) -> tuple[int, int] | None:
        """What changes whenever the file does; None while it is not there."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)

    def look(self) -> bool:
        """Take in what was saved since; return whether anything was. A wrong file changes nothing."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.now = read(self._path)
        except Misconfigured as error:
            log.error("configuration_not_taken", error=str(error))
            return False
        log.info("configuration_taken", path=str(self._path))
        return True

    async def watch(self) -> None:
        """Look for changes for ever."""
        while self._path is not None:
            self.look()
            await asyncio.sleep(LOOK_S)
