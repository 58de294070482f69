"""Virtual time: what is to happen, in the order in which it does."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Calls by the instant at which they are due; those of one instant in the order in which they were set."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._set = 0

    def at(self, at_ms: int, call: Callable[[], None]) -> None:
        """Call `call` at `at_ms`, or now if that is past."""
        self._set += 1
        heapq.heappush(self._due, (max(at_ms, self.now_ms), self._set, call))

    def step(self) -> bool:
        """Go to the next instant and make all its calls; False if nothing is to happen any more."""
        due = self._due
        if not due:
            return False
        self.now_ms = due[0][0]
        while due and due[0][0] == self.now_ms:
            heapq.heappop(due)[2]()
        return True
