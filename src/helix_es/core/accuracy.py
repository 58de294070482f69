"""How well the waits that were told on arrival fit those that followed."""

from __future__ import annotations

import msgspec

RECENT = 200  # admissions: what is shown as the present accuracy
TOLERANCE = 0.3  # of the wait
AT_ONCE_MS = 50  # a few appends: nobody waited
SHORT_MS, ALLOWANCE_MS = 3_000, 1_000  # of a wait that short, an error of a second is no error to a person


class Told(msgspec.Struct, frozen=True, array_like=True):
    """One turn: the wait that was told, and the wait."""

    estimated_ms: int
    waited_ms: int

    @property
    def error_ms(self) -> int:
        return abs(self.estimated_ms - self.waited_ms)

    @property
    def within(self) -> bool:
        return self.error_ms <= TOLERANCE * self.waited_ms

    @property
    def near(self) -> bool:
        """Within the tolerance, or short and wrong by less than the allowance."""
        return self.within or (self.waited_ms < SHORT_MS and self.error_ms <= ALLOWANCE_MS)


class Accuracy(msgspec.Struct, kw_only=True):
    """Of the turns of one workload that were admitted for the first time. Cancelled ones never tell."""

    at_once: int = 0
    """Told that they need not wait, and did not: right, and counted apart, since it was easy."""
    unknown: int = 0
    """Told nothing: nothing served the workload when they came, and nothing was coming."""
    told: int = 0
    """All others; the counts below are of these."""
    within: int = 0
    near: int = 0
    """Within, or short and wrong by less than a second."""
    error_ms: int = 0
    """All absolute errors together."""
    recent: list[Told] = msgspec.field(default_factory=list)
    """The last of them, newest last."""

    def admitted(self, estimated_ms: int | None, waited_ms: int) -> None:
        """Note what a turn was told, None if nothing, and how long it waited."""
        if estimated_ms is None:
            self.unknown += 1
            return
        if estimated_ms <= AT_ONCE_MS and waited_ms <= AT_ONCE_MS:
            self.at_once += 1
            return
        told = Told(estimated_ms, waited_ms)
        self.told += 1
        self.within += told.within
        self.near += told.near
        self.error_ms += told.error_ms
        self.recent.append(told)
        if len(self.recent) > RECENT:
            del self.recent[0]

    @property
    def mean_error_ms(self) -> int | None:
        """The mean absolute error, None if nobody was told a wait."""
        return self.error_ms // self.told if self.told else None

    @property
    def share_within(self) -> float | None:
        """0 to 1, of all."""
        return self.within / self.told if self.told else None

    @property
    def share_near(self) -> float | None:
        """0 to 1, of all."""
        return self.near / self.told if self.told else None

    @property
    def recent_within(self) -> float | None:
        """0 to 1, of the last 200."""
        return sum(each.within for each in self.recent) / len(self.recent) if self.recent else None

    @property
    def recent_near(self) -> float | None:
        """0 to 1, of the last 200."""
        return sum(each.near for each in self.recent) / len(self.recent) if self.recent else None
