"""Whether every decision of the run follows from its log."""

from __future__ import annotations

from collections.abc import Sequence

from helix_es.core.events import Recorded
from helix_es.core.verify import Verification
from tests.chaos.violation import Violation


def replayed(records: Sequence[Recorded]) -> list[Violation]:
    """Return the decisions that are not made again."""
    verification = Verification()
    for record in records:
        verification.note(record)
    for record in records:
        verification.take(record)
    return [
        Violation(rule="replayed", seq=each.seq, text=f"{each.what}, from sequence {each.decided_seq}")
        for each in verification.end().differences
    ]
