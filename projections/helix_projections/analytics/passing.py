"""Who was overtaken: of each queue, how many came later than a turn and were admitted before it."""

from __future__ import annotations

import msgspec
from sortedcontainers import SortedList

from helix_es.core.events import Workload


class PassingState(msgspec.Struct, frozen=True):
    """One queue, to be kept."""

    workload: Workload
    waiting: list[int]
    admitted: list[int]


class Passing:
    """Turns stand here by the sequence that brought them into their queue. Every operation is O(log n)."""

    def __init__(self) -> None:
        self._waiting: dict[Workload, SortedList[int]] = {}
        self._admitted: dict[Workload, SortedList[int]] = {}

    def arrived(self, workload: Workload, seq: int) -> None:
        """A turn came to the queue with the fact `seq`."""
        waiting = self._waiting.get(workload)
        if waiting is None:
            waiting = self._waiting[workload] = SortedList()
            self._admitted[workload] = SortedList()
        waiting.add(seq)

    def admitted(self, workload: Workload, seq: int) -> int:
        """The turn that came with `seq` was admitted; return how many had passed it."""
        waiting, passed = self._waiting[workload], self._admitted[workload]
        count = len(passed) - int(passed.bisect_right(seq)) if passed else 0
        if len(waiting) > 1:
            passed.add(seq)
        self.left(workload, seq)
        return count

    def left(self, workload: Workload, seq: int) -> None:
        """The turn that came with `seq` is in the queue no more."""
        waiting, passed = self._waiting[workload], self._admitted[workload]
        waiting.discard(seq)
        # Whoever came before all that still wait can pass none of them.
        if not waiting:
            passed.clear()
        elif passed and passed[0] < waiting[0]:
            del passed[: passed.bisect_left(waiting[0])]

    def dump(self) -> list[PassingState]:
        """Return what `load` needs."""
        return [
            PassingState(workload, list(waiting), list(self._admitted[workload]))
            for workload, waiting in sorted(self._waiting.items())
            if waiting
        ]

    @classmethod
    def load(cls, states: list[PassingState]) -> Passing:
        """Return what `dump` was called on."""
        passing = cls()
        for each in states:
            passing._waiting[each.workload] = SortedList(each.waiting)
            passing._admitted[each.workload] = SortedList(each.admitted)
        return passing
