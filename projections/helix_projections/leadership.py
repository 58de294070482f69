"""Which scheduler acts. Only to spare doubled work: two that act at once do no harm, the fences see to that."""

from __future__ import annotations

LEASE_MS = 1000  # four beats missed; a standby goes on well within two seconds


class Leadership:
    """Decided from the stored beats of all schedulers, in their order, so that all see the same."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.active = False
        self._other_ms: int | None = None

    def beat(self, scheduler: str, *, active: bool, at_ms: int) -> bool:
        """Take in a stored beat of any scheduler; return whether we act now."""
        if scheduler != self.name:
            if active and (not self.active or scheduler < self.name):
                self._other_ms = at_ms
                self.active = False
        elif self._other_ms is None or at_ms - self._other_ms > LEASE_MS:
            self.active = True
        return self.active
