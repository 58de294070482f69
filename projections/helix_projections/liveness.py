"""Which GPUs have fallen silent, judged by a clock that stands still while the broker does."""

from __future__ import annotations

from collections import OrderedDict


class Liveness:
    """Ages of heartbeats in *lived* time: each of our own stored beats adds what it adds, but no more than a gap.

    If the broker stalls for nine seconds, neither our beats nor the heartbeats are stored; the first beat after it
    must not make every GPU nine seconds older.
    """

    def __init__(self, *, lost_after_ms: int, most_gap_ms: int) -> None:
        self._lost_after_ms = lost_after_ms
        self._most_gap_ms = most_gap_ms
        self._lived_ms = 0
        self._beat_ms: int | None = None
        # how long it may be silent -> who has that leave, least recently heard first: only the overdue are looked at
        self._heard: dict[int, OrderedDict[str, tuple[str, int]]] = {}
        self._leave_ms: dict[str, int] = {}

    def beat(self, at_ms: int) -> None:
        """Our own beat was stored at `at_ms`."""
        if self._beat_ms is not None:
            self._lived_ms += max(0, min(at_ms - self._beat_ms, self._most_gap_ms))
        self._beat_ms = at_ms

    def heard(self, gpu: str, incarnation: str, silence_ms: int = 0) -> None:
        """A sign of life of `gpu` was stored; it may be silent for `silence_ms`, 0: as long as any other."""
        leave_ms = silence_ms or self._lost_after_ms
        if self._leave_ms.get(gpu, leave_ms) != leave_ms:
            self.forget(gpu)
        self._leave_ms[gpu] = leave_ms
        group = self._heard.setdefault(leave_ms, OrderedDict())
        group[gpu] = (incarnation, self._lived_ms)
        group.move_to_end(gpu)

    def forget(self, gpu: str) -> None:
        """`gpu` is gone."""
        leave_ms = self._leave_ms.pop(gpu, None)
        if leave_ms is None:
            return
        group = self._heard[leave_ms]
        del group[gpu]
        if not group:
            del self._heard[leave_ms]

    def silent(self) -> list[tuple[str, str, int]]:
        """Return (GPU, incarnation, silence in ms) of each that was silent too long, the longest first."""
        found = []
        for leave_ms, group in self._heard.items():
            for gpu, (incarnation, heard_ms) in group.items():
                silence_ms = self._lived_ms - heard_ms
                if silence_ms < leave_ms:
                    break
                found.append((gpu, incarnation, silence_ms))
        return sorted(found, key=lambda each: (-each[2], each[0]))
