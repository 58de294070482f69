"""For how long the sessions of a workload work and are silent, as measured lately."""

from __future__ import annotations

import msgspec

from helix_es.core.accuracy import Accuracy
from helix_es.core.overtaking import Overtaking

MEMORY = (
    128  # turns that the measured durations are a mean of: smooth, and it follows a change within minutes
)
KEEP = 1 - 1 / MEMORY


class SlotRate(msgspec.Struct, kw_only=True):
    """A session works or is silent. While others wait, it gives its slot back when its silence reaches the idle time.

    A silence ends otherwise with a next turn (it returns) or with the session (it is closed). Work is summed over all
    who work, so that long turns count before they end.
    """

    working: int = 0
    at_ms: int = 0
    work_ms: float = 0.0
    """How long sessions worked until then. Like all sums below it fades, so that what was lately counts."""
    stops: float = 0.0
    """How often they stopped to."""
    silences: float = 0.0
    """That ended; of these:"""
    returns: float = 0.0
    """those that a next turn broke within the idle time,"""
    closes: float = 0.0
    """and those that the session's end did."""
    broken_ms: float = 0.0
    """How long these two lasted, together."""
    overtaking: Overtaking = msgspec.field(default_factory=Overtaking)
    accuracy: Accuracy = msgspec.field(default_factory=Accuracy)

    def began(self, at_ms: int) -> None:
        """A session works from now on."""
        if at_ms > self.at_ms:
            self.work_ms += (at_ms - self.at_ms) * self.working
            self.at_ms = at_ms
        self.working += 1

    def stopped(self, at_ms: int) -> None:
        """A session works no more: it is silent, or gone."""
        if at_ms > self.at_ms:
            self.work_ms += (at_ms - self.at_ms) * self.working
            self.at_ms = at_ms
        self.working -= 1
        self.work_ms *= KEEP
        self.stops = (self.stops + 1) * KEEP

    def broken(self, lasted_ms: int, *, idle_after_ms: int, returned: bool) -> None:
        """A silence ended. One that outlasted the idle time would have been ended by that, had anybody waited."""
        self.silences = self.silences * KEEP + 1
        self.returns *= KEEP
        self.closes *= KEEP
        self.broken_ms *= KEEP
        if lasted_ms < idle_after_ms:
            self.broken_ms += lasted_ms
            if returned:
                self.returns += 1
            else:
                self.closes += 1
