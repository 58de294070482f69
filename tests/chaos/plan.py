"""Which fault comes when: from the seed alone, so that the plan of a failed run can be looked at and run again."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal

import msgspec

Action = Literal["kill", "stop"]
Kind = Literal["scheduler", "api", "simulated", "real", "nats"]

COUNT: dict[Kind, int] = {"scheduler": 2, "api": 2, "simulated": 4, "real": 2, "nats": 3}
"""Processes of each kind."""
ROLES: dict[Kind, str] = {"scheduler": "active", "nats": "leader"}
"""Those of them that matter most are called by what they do; which one that is shows only when it is struck."""

GAP_S = (2.0, 4.0)
DOWN_S = (0.3, 2.0)
SILENT_S = (4.0, 6.0)  # longer than three heartbeats: the scheduler must notice by itself
FROZEN_S: dict[Kind, tuple[float, float]] = {
    "scheduler": (2.0, 6.0),
    "api": (2.0, 6.0),
    "simulated": (4.0, 10.0),
    "real": (4.0, 10.0),
}
# action, kind, its leading one, weight; a real runner loads for long, and killed too often it never serves
FAULTS: tuple[tuple[Action, Kind, bool, int], ...] = (
    ("kill", "scheduler", True, 4),
    ("kill", "scheduler", False, 2),
    ("kill", "api", False, 4),
    ("kill", "simulated", False, 6),
    ("kill", "real", False, 1),
    ("kill", "nats", True, 2),
    ("kill", "nats", False, 2),
    ("stop", "simulated", False, 6),
    ("stop", "real", False, 1),
    ("stop", "scheduler", True, 2),
    ("stop", "api", False, 2),
)
DECK = len(FAULTS)
"""So many faults and each one was there."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is to be done to a process."""

    number: int
    after_s: float
    """Since the fault before."""
    action: Action
    kind: Kind
    index: int
    """Which process of its kind."""
    role: str = ""
    """If not empty: the one that has this role, whichever it is then."""
    lasts_s: float
    """Until it is started again, or goes on."""

    @property
    def words(self) -> str:
        """Return it in a line."""
        who = f"{self.kind} ({self.role})" if self.role else f"{self.kind}-{self.index}"
        return (
            f"{self.number:3d}  +{self.after_s:.1f} s  {self.action} {who}, back after {self.lasts_s:.1f} s"
        )


def faults(seed: int) -> Iterator[Fault]:
    """Yield faults for ever: first one of each, in some order, then whatever comes."""
    random = Random(f"{seed}/faults")
    deck = list(range(DECK))
    random.shuffle(deck)
    weights = [fault[3] for fault in FAULTS]
    number = 0
    while True:
        drawn = deck[number] if number < DECK else random.choices(range(DECK), weights)[0]
        yield _fault(random, number, drawn)
        number += 1


def _fault(random: Random, number: int, drawn: int) -> Fault:
    action, kind, leading, _ = FAULTS[drawn]
    after_s, index = random.uniform(*GAP_S), random.randrange(COUNT[kind])
    if action == "stop":
        span = FROZEN_S[kind]
    else:  # one in three runners stays away until it is missed
        span = SILENT_S if kind in ("simulated", "real") and random.random() < 1 / 3 else DOWN_S
    return Fault(
        number=number,
        after_s=round(after_s, 2),
        action=action,
        kind=kind,
        index=index,
        role=ROLES[kind] if leading else "",
        lasts_s=round(random.uniform(*span), 2),
    )
