"""How long nothing has moved on a GPU that has turns to do: what tells a stuck engine from an idle one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stall:
    """Told of every sign of progress of any turn; `moved` may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._moved_at = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """A turn is with the engine as long as this lasts; its beginning and its end are progress too."""
        self.moved()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self.moved()

    def moved(self) -> None:
        """A piece was said, a step done, or a part of one."""
        self._moved_at = self._clock()

    @property
    def ms(self) -> int:
        """Milliseconds since the last sign of progress, 0 if no turn runs."""
        return int((self._clock() - self._moved_at) * 1000) if self._running else 0
