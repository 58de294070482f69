"""Who comes when and what they say: seeded, and by turns more and less than the shop can serve."""

from __future__ import annotations

from random import Random

import msgspec

GPUS, SLOTS = 8, 6
MODEL, KIND = "mistral", "a100-80"
FIRST_TOKEN_MS, TOKENS_PER_S, LOAD_MS = 200, 40.0, 2_000
IDLE_AFTER_S = 5.0
OWNERS = 12
LOADS = (1.0, 1.45, 0.85, 1.35, 0.3)
"""Of what the shop can serve, in five parts of the run: people must wait, and the queue must go away again."""
STAY_S = 14.0
"""About how long a session of this schedule holds a slot: so 1.0 of a load is all slots held."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that somebody will say."""

    think_s: float
    """After the answer before; 0 for the first."""
    prompt_chars: int
    tokens: int
    """Of the answer."""


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """A session that will come."""

    name: str
    at_s: float
    owner: str
    lines: list[Line]
    leaves_s: float | None
    """Closes its session so long after the last answer; None: it just falls silent."""


def schedule(minutes: float, seed: int) -> list[Visit]:
    """Return the visits of a run, in order of time."""
    random = Random(seed)
    part_s = minutes * 60 / len(LOADS)
    visits: list[Visit] = []
    at_s = 0.0
    while (part := int(at_s / part_s)) < len(LOADS):
        at_s += random.expovariate(LOADS[part] * GPUS * SLOTS / STAY_S)
        visits.append(_visit(random, f"v{len(visits)}", at_s))
    return visits[:-1]


def _visit(random: Random, name: str, at_s: float) -> Visit:
    turns = random.choice((1, 1, 2, 3, 4))
    lines = [
        Line(
            think_s=0.0 if turn == 0 else min(12.0, random.expovariate(1 / 3.0)),
            prompt_chars=random.randint(2_500, 24_000) if random.random() < 0.3 else random.randint(20, 400),
            tokens=min(400, max(10, round(random.expovariate(1 / 100)))),
        )
        for turn in range(turns)
    ]
    leaves_s = random.uniform(0.0, 2.0) if random.random() < 0.4 else None
    owner = f"o{random.randrange(OWNERS)}"
    return Visit(name=name, at_s=at_s, owner=owner, lines=lines, leaves_s=leaves_s)
