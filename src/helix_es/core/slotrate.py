"""How fast slots of a workload come free, and what that means for somebody who waits."""

from __future__ import annotations

import msgspec

WINDOW = 16  # long enough to smooth a burst of releases, short enough to follow a fleet that grows


class SlotRate(msgspec.Struct, kw_only=True):
    """Instants at which a slot came free while somebody waited, newest last, Unix ms."""

    freed_ms: list[int] = msgspec.field(default_factory=list)
    interval_ms: int | None = None
    """Mean distance of two frees, as measured in the last busy period."""

    def freed(self, now_ms: int) -> None:
        """Note that a slot came free while the queue was not empty."""
        self.freed_ms.append(now_ms)
        if len(self.freed_ms) > WINDOW:
            del self.freed_ms[0]
        if len(self.freed_ms) > 1:
            self.interval_ms = (self.freed_ms[-1] - self.freed_ms[0]) // (len(self.freed_ms) - 1)

    def calm(self) -> None:
        """Note that nobody waits any more: the time until the next crowd says nothing about the rate."""
        self.freed_ms.clear()

    def wait_ms(self, position: int, *, slots: int, now_ms: int, prior_hold_ms: int) -> int | None:
        """Return the wait to expect at `position` (1 is next), or None while the workload has no slot at all.

        Before anything was measured a session is taken to hold its slot for `prior_hold_ms`.
        """
        if slots <= 0:
            return None
        interval_ms = self.interval_ms if self.interval_ms is not None else prior_hold_ms // slots
        since_ms = now_ms - self.freed_ms[-1] if self.freed_ms else 0
        return max(0, position * interval_ms - since_ms)
