"""One picture in the making, between the computing thread and the task that waits for it."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from helix_es.core.errors import HelixError
from helix_runners.image.picture import Painted, Step, Wanted


class Cancelled:
    """How a painting ends that somebody stopped."""


End = Painted | Cancelled | HelixError


class Painting:
    """Belongs to one event loop, and is used in it only, but for `wanted` and `cancelled`, which may be read."""

    def __init__(self, wanted: Wanted, loop: asyncio.AbstractEventLoop) -> None:
        self.wanted = wanted
        self.loop = loop
        self.cancelled = False
        """The next step is not to be computed."""
        self._step: Step | None = None
        self._end: End | None = None
        self._changed = asyncio.Event()

    def cancel(self) -> None:
        """Stop before the next step; harmless once it is over."""
        self.cancelled = True

    def put(self, item: Step | End) -> None:
        """Take what the engine gave out; a step that nobody has fetched yet gives way to the one after it."""
        if isinstance(item, Step):
            unseen = self._step.preview if self._step is not None else b""
            self._step = item if item.preview else replace(item, preview=unseen)
        else:
            self._end = item
        self._changed.set()

    async def next_step(self) -> Step | None:
        """Wait for a step; None: there are no more. Raises the error that it ended with."""
        await self._changed.wait()
        if self._step is not None:
            step, self._step = self._step, None
            if self._end is None:
                self._changed.clear()
            return step
        if isinstance(self._end, HelixError):
            raise self._end
        return None

    @property
    def painted(self) -> Painted | None:
        """The picture, once there are no more steps; None if it was cancelled."""
        return self._end if isinstance(self._end, Painted) else None
