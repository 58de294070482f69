"""What the floor offered and what was used of it, summed over time."""

from __future__ import annotations


class Level:
    """A number that changes now and then, and its sum over time."""

    __slots__ = ("_at_ms", "_total", "value")

    def __init__(self) -> None:
        self.value = 0
        self._at_ms = 0
        self._total = 0

    def change(self, now_ms: int, by: int) -> None:
        """Let it be `by` more from now on."""
        self._total += self.value * (now_ms - self._at_ms)
        self._at_ms = now_ms
        self.value += by

    def total(self, now_ms: int) -> int:
        """Return its sum until now, in units of its own × ms."""
        return self._total + self.value * (now_ms - self._at_ms)


class Totals:
    """The sums of a meter between its opening and its last mark, ms."""

    __slots__ = ("busy", "held", "offered", "present")

    def __init__(self, present: int, busy: int, held: int, offered: int) -> None:
        self.present, self.busy, self.held, self.offered = present, busy, held, offered


class Meter:
    """Levels of the whole floor. What is beyond the last mark does not count: then only the silence goes on."""

    def __init__(self) -> None:
        self.present = Level()
        """GPUs that are there."""
        self.busy = Level()
        """GPUs that compute."""
        self.held = Level()
        """Slots of chats and pictures that a session holds."""
        self.offered = Level()
        """Slots of GPUs that serve chats and pictures, and are ready."""
        self._opened = self._marked = (0, 0, 0, 0)
        self.marked_ms = 0

    def open(self, now_ms: int) -> None:
        """Count from now on."""
        self._opened = self._marked = self._sums(now_ms)
        self.marked_ms = now_ms

    def mark(self, now_ms: int) -> None:
        """Count up to now."""
        self._marked = self._sums(now_ms)
        self.marked_ms = now_ms

    def totals(self) -> Totals:
        """Return what was counted."""
        return Totals(*(then - before for then, before in zip(self._marked, self._opened, strict=True)))

    def _sums(self, now_ms: int) -> tuple[int, int, int, int]:
        return (
            self.present.total(now_ms),
            self.busy.total(now_ms),
            self.held.total(now_ms),
            self.offered.total(now_ms),
        )
