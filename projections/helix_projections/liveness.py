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
        self._heard: OrderedDict[str, tuple[str, int]] = OrderedDict()  # least recently heard first

    def beat(self, at_ms: int) -> None:
        """Our own beat was stored at `at_ms`."""
        if self._beat_ms is not None:
            self._lived_ms += max(0, min(at_ms - self._beat_ms, self._most_gap_ms))
        self._beat_ms = at_ms

    def heard(self, gpu: str, incarnation: str) -> None:
        """A sign of life of `gpu` was stored."""
        self._heard[gpu] = (incarnation, self._lived_ms)
        self._heard.move_to_end(gpu)

    def forget(self, gpu: str) -> None:
        """`gpu` is gone."""
        self._heard.pop(gpu, None)

    def silent(self) -> list[tuple[str, str, int]]:
        """Return (GPU, incarnation, silence in ms) of each that was silent too long, the longest first."""
        found = []
        for gpu, (incarnation, heard_ms) in self._heard.items():
            silence_ms = self._lived_ms - heard_ms
            if silence_ms < self._lost_after_ms:
                break
            found.append((gpu, incarnation, silence_ms))
        return found
