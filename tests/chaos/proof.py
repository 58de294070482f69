"""The proof: what must hold in the log of a run, whatever was done to its processes. Records in, violations out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helix_es.core.events import Recorded
from tests.chaos.lives import Lives
from tests.chaos.slots import Slots
from tests.chaos.streams import streams
from tests.chaos.told import Told
from tests.chaos.violation import Violation


@dataclass(frozen=True)
class Proof:
    """What the log was found to say."""

    lives: Lives
    slots: Slots
    violations: list[Violation]


def prove(records: Sequence[Recorded], told: Told) -> Proof:
    """Return the proof; it holds if it has no violations. They come in the order of the rules, then of the log."""
    lives, slots = Lives(), Slots()
    gaps = _gaps(records)
    for record in records:
        lives.apply(record)
        slots.apply(record)
    lives.close(told)
    return Proof(
        lives,
        slots,
        [*gaps, *lives.violations, *slots.violations, *streams(lives, told)],
    )


def _gaps(records: Sequence[Recorded]) -> list[Violation]:
    """Nothing of the log is missing, or all that follows is worth nothing."""
    found, last = [], 0
    for record in records:
        if record.seq != last + 1:
            found.append(Violation(rule="log", seq=record.seq, text=f"follows sequence {last}"))
        last = record.seq
    return found
