"""Who else was on a GPU while a turn ran there."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Span(msgspec.Struct, kw_only=True):
    """An attempt at a chat's turn, from started to ended in the log. The rest is 0 where the log does not tell."""

    gpu: str
    started_ms: int
    ended_ms: int
    first_ms: float = 0.0
    """From started to the first token."""
    unread: int = 0
    """Prompt tokens that were not in the cache."""
    tokens: int = 0

    @property
    def decode_ms(self) -> float:
        return self.ended_ms - self.started_ms - self.first_ms

    @property
    def read_ms(self) -> float:
        """When its prompt was read: not before its end, where the log does not tell."""
        return self.started_ms + self.first_ms if self.tokens else float(self.ended_ms)


class Crowd(msgspec.Struct, kw_only=True):
    """What a turn shared its GPU with."""

    running: int = 1
    """Turns that ran when it started, itself included."""
    behind_ms: float = 0.0
    """How long prompts that came before it were still being read."""
    running_ms: dict[int, float] = msgspec.field(default_factory=dict)
    """After its first token: for how long so many turns ran, itself included, ms."""
    decoding_ms: dict[int, float] = msgspec.field(default_factory=dict)
    """The same, of turns that had their first token."""


def crowds(spans: Sequence[Span]) -> list[Crowd]:
    """Return the crowd of each span, in their order."""
    found = [Crowd() for _ in spans]
    by_gpu: dict[str, list[int]] = {}
    for index, span in enumerate(spans):
        by_gpu.setdefault(span.gpu, []).append(index)
    for indexes in by_gpu.values():
        _sweep(spans, found, sorted(indexes, key=lambda index: spans[index].started_ms))
    return found


ENDED, STARTED, READ, VANISHED = range(4)
"""In this order at one instant: the next turn of a session starts when the last has ended. VANISHED: took no time."""


def _sweep(spans: Sequence[Span], found: list[Crowd], indexes: list[int]) -> None:
    """Go through all changes on one GPU in their order."""
    changes: list[tuple[float, int, int]] = []
    for index in indexes:
        span = spans[index]
        changes.append((float(span.started_ms), STARTED, index))
        changes.append((max(float(span.started_ms), span.read_ms), READ, index))
        ended_ms = max(float(span.ended_ms), span.read_ms)
        changes.append((ended_ms, ENDED if ended_ms > span.started_ms else VANISHED, index))
    changes.sort(key=lambda change: (change[0], change[1]))
    reading: dict[int, None] = {}
    decoding: dict[int, None] = {}
    before_ms = 0.0
    for at_ms, what, index in changes:
        _pass(found, reading, decoding, at_ms - before_ms)
        before_ms = at_ms
        if what == STARTED:
            found[index].running = len(reading) + len(decoding) + 1
            found[index].behind_ms = max(
                (max(0.0, spans[other].read_ms - at_ms) for other in reading), default=0.0
            )
            reading[index] = None
        elif what == READ and index in reading:
            del reading[index]
            decoding[index] = None
        elif what in (ENDED, VANISHED):
            reading.pop(index, None)
            decoding.pop(index, None)


def _pass(found: list[Crowd], reading: dict[int, None], decoding: dict[int, None], passed_ms: float) -> None:
    if passed_ms <= 0:
        return
    together = len(decoding)
    for index in decoding:
        crowd = found[index]
        crowd.decoding_ms[together] = crowd.decoding_ms.get(together, 0.0) + passed_ms
        running = together + len(reading)
        crowd.running_ms[running] = crowd.running_ms.get(running, 0.0) + passed_ms
