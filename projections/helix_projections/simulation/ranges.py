"""Ranges as people give them: `1..16`, `4..32:4`, `1,2,4,8`, and durations of the same form."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from helix_es.core.errors import Misconfigured

MOST_VALUES = 1_000  # of one range: each is at least one simulation

UNITS_MS = {"ms": 1, "s": 1_000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Read = Callable[[str], Decimal]


def counts(text: str, what: str, *, least: int = 0, most: int = 100_000) -> tuple[int, ...]:
    """Return the whole numbers that `text` says, in its order, each once.

    Raises Misconfigured: no range, or a number outside `least` to `most`.
    """

    def whole(word: str) -> Decimal:
        if not word.isdecimal():
            raise ValueError(word)
        return Decimal(word)

    found = _values(text, what, whole, "1..16, 4..32:4 or 1,2,4")
    for each in found:
        if not least <= each <= most:
            raise Misconfigured(f"{what}: {each} is not allowed; {least} to {most} are")
    return tuple(int(each) for each in found)


def factors(text: str, what: str) -> tuple[float, ...]:
    """Return the numbers above 0 that `text` says. Raises Misconfigured."""

    def number(word: str) -> Decimal:
        if not _NUMBER.fullmatch(word):
            raise ValueError(word)
        return Decimal(word)

    found = _values(text, what, number, "1, 0.5..2:0.5 or 1,2,4")
    if min(found) <= 0:
        raise Misconfigured(f"{what}: must be above 0")
    return tuple(float(each) for each in found)


def durations_ms(text: str, what: str) -> tuple[int, ...]:
    """Return the durations that `text` says, in ms. Raises Misconfigured."""
    found = _values(text, what, lambda word: Decimal(duration_ms(word)), "10s, 5s..30s:5s or 5s,10s,1min")
    return tuple(int(each) for each in found)


def duration_ms(text: str) -> int:
    """Return a duration such as `1.5s`, `300 ms` or `5min`, in ms. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    return round(Decimal(found[1]) * UNITS_MS[found[2]])


def _values(text: str, what: str, read: Read, examples: str) -> tuple[Decimal, ...]:
    values: dict[Decimal, None] = {}
    for part in text.split(","):
        try:
            stretch = _stretch(part.strip(), read)
        except ValueError as error:
            raise Misconfigured(
                f"{what}: {part.strip() or text!r} is no range; give for example {examples}"
            ) from error
        values.update(dict.fromkeys(stretch))
        if len(values) > MOST_VALUES:
            raise Misconfigured(
                f"{what}: {text} are more than {MOST_VALUES:,} values; give a step, as in 4..32:4"
            )
    return tuple(values)


def _stretch(part: str, read: Read) -> list[Decimal]:
    """Return the values of `a`, `a..b` or `a..b:step`; the step is 1 of the unit in which `a` is given."""
    span, colon, step = part.partition(":")
    first, dots, last = span.partition("..")
    begin = read(first.strip())
    if not dots:
        if colon:
            raise ValueError(part)
        return [begin]
    end = read(last.strip())
    by = read(step.strip()) if colon else read(re.sub(r"^\d+(\.\d+)?", "1", first.strip()))
    if by <= 0 or end < begin:
        raise ValueError(part)
    steps = int((end - begin) / by)
    return [begin + by * n for n in range(min(steps, MOST_VALUES) + 1)]
