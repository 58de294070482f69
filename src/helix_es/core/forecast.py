"""When a slot comes free for somebody who waits: known instants of those who are silent, then work as a fluid."""

from __future__ import annotations

from typing import NamedTuple

from sortedcontainers import SortedList

from helix_es.core.loading import Coming
from helix_es.core.slotrate import SlotRate

STEPS = 8  # of the longer of a turn and a silence: the fluid's error is then below that of the measured means
CYCLES = 2  # that are followed step by step; after that slots come free at the mean rate
FAR = 6  # cycles: what happens in the first of them makes no difference to whoever waits that long
ROUNDS = 8  # of reckoning who comes ahead meanwhile: it settles after two or three
MOST_RETURNS = (
    0.9  # share of the silences: beyond it the mean of a few says nothing about how long a slot is held
)
MOST_OVERTAKEN = 0.95  # share of the slots: nobody is overtaken for ever


class Ahead(NamedTuple):
    """What must be served before somebody's turn is, its own included."""

    turns: float
    """In the queue now, less those for whom a slot is free."""
    smaller: float = 0.0
    """Of these: in smaller shares. Until they are served, owners who had less may come and go ahead."""
    above: float = 0.0
    """Arrivals a ms that go ahead all the time."""
    chasing: float = 0.0
    """Arrivals a ms that go ahead until the smaller shares are served."""


class Supply(NamedTuple):
    """What slots there are and will be."""

    slots: int
    now_ms: int
    idle_after_ms: int
    prior_work_ms: int
    """How long a turn takes, before any was measured."""
    silent_ms: SortedList[int]
    """Since when each silent session is, in order, Unix ms."""
    coming: tuple[Coming, ...] = ()
    """The soonest first."""


def wait_ms(rate: SlotRate, ahead: Ahead, supply: Supply) -> int:
    """Return the wait to expect. There must be slots, or some coming."""
    forecast = Forecast(rate, supply)
    chased = 0.0
    if ahead.chasing and ahead.smaller > 0:
        chased = ahead.chasing * forecast.until(ahead.smaller, ahead.above + ahead.chasing)
    return round(forecast.until(ahead.turns + chased, ahead.above))


class Forecast:
    """How many slots come free from now on, with each given away at once, since somebody waits for it."""

    def __init__(self, rate: SlotRate, supply: Supply) -> None:
        self._supply = supply
        self._idle_ms = idle_ms = supply.idle_after_ms
        self._work_ms = max(1.0, rate.work_ms / rate.stops) if rate.stops else float(supply.prior_work_ms)
        silences = rate.silences or 1.0
        self._returning = min(MOST_RETURNS, rate.returns / silences)
        self._closing = min(1.0 - self._returning, rate.closes / silences)
        self._lasting = max(0.0, 1.0 - self._returning - self._closing)
        broken_ms, lasting_ms = rate.broken_ms / silences, self._lasting * idle_ms
        # Those that return or close are silent for a shorter time, so fewer of them are silent at an instant.
        self._due = max(0.1, lasting_ms / (lasting_ms + broken_ms)) if lasting_ms else 1.0
        hold_ms = (self._work_ms + broken_ms + lasting_ms) / (1.0 - self._returning)
        slots = supply.slots + sum(each.slots for each in supply.coming)
        self._hold_ms = hold_ms
        self._rate = slots / hold_ms
        """Slots a ms, in the long run."""

    def until(self, need: float, growth: float) -> float:
        """Return the ms until `need` slots have come free, and `growth` a ms more that are asked for meanwhile."""
        growth = min(growth, MOST_OVERTAKEN * self._rate)
        far_ms = need / (self._rate - growth)
        if far_ms > FAR * self._hold_ms and self._supply.slots:
            return far_ms
        known_ms = self._known(need, growth)
        return self._followed(need, growth) if known_ms is None else known_ms

    def _known(self, need: float, growth: float) -> int | None:
        """From those who are silent now; None if they are too few, or a GPU is ready sooner."""
        wait_ms = 0
        for _ in range(ROUNDS):
            index = max(0, int((need + growth * wait_ms) / self._due + 0.5) - 1)
            if index >= len(self._supply.silent_ms):
                return None
            due_ms = max(0, int(self._supply.silent_ms[index]) + self._idle_ms - self._supply.now_ms)
            if any(each.in_ms < due_ms for each in self._supply.coming):
                return None
            if due_ms <= wait_ms or not growth:
                return due_ms
            wait_ms = due_ms  # more come ahead meanwhile
        return wait_ms

    def _followed(self, need: float, growth: float) -> float:
        """Step by step; then at the mean rate."""
        supply, idle_ms = self._supply, self._idle_ms
        if not idle_ms and not supply.coming:
            return need / (self._rate - growth)  # slots are given on at once: there is nothing to follow
        step_ms = max(idle_ms, self._work_ms) / STEPS
        delay = round(idle_ms / step_ms)
        share = step_ms / (self._work_ms + step_ms / 2)  # of those who work, that stop within a step
        working = float(max(0, supply.slots - len(supply.silent_ms)))
        lasting: list[float] = []  # silences that began in each step and will last
        begin_ms = 0.0 if supply.slots else float(supply.coming[0].in_ms)
        loaded = due = gained = 0.0
        for n in range(STEPS * CYCLES):
            end_ms = begin_ms + step_ms
            fresh = self._loaded(end_ms) - loaded
            if fresh and gained + fresh >= need + growth * begin_ms:
                return max(begin_ms, self._loaded_at(need + growth * begin_ms - gained + loaded))
            stops = working * share
            lasting.append(stops * self._lasting)
            known = supply.silent_ms.bisect_right(supply.now_ms + end_ms - idle_ms) * self._due
            free = known - due + stops * self._closing + (lasting[n - delay] if n >= delay else 0.0)
            working += fresh + free - stops * (1.0 - self._returning)
            gained += fresh + free
            loaded, due, begin_ms = loaded + fresh, known, end_ms
            surplus, net = gained - need - growth * end_ms, free - growth * step_ms
            if surplus >= 0:
                return end_ms - (min(step_ms, step_ms * surplus / net) if net > 0 else 0.0)
        return begin_ms + (need + growth * begin_ms - gained) / (self._rate - growth)

    def _loaded(self, until_ms: float) -> int:
        """Return the slots of GPUs that are ready by then."""
        return sum(each.slots for each in self._supply.coming if each.in_ms < until_ms)

    def _loaded_at(self, slots: float) -> int:
        """Return when GPUs with so many slots are ready."""
        for each in self._supply.coming:
            slots -= each.slots
            if slots <= 0:
                return each.in_ms
        return self._supply.coming[-1].in_ms
