"""How long nobody acted when one scheduler took over from another, by the beats of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from helix_es.core import events as e
from tests.chaos.spread import Spread, spread
from tests.chaos.told import Strike

BOTH_MS = 500
"""Two beats; whoever takes over waits for four."""
CAUSE_MS = 15_000
"""A change of schedulers is put down to what was struck not longer ago."""
BOOT_MS = 3000
"""A scheduler that was started again is a standby after so long: it imports, connects, folds."""


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """One scheduler took over from another."""

    at_ms: int
    gap_ms: int
    """From the last beat of the one that acted to the first of the one that acts; less than `BOTH_MS`: both did."""
    cause: str
    """What was done to whom shortly before."""
    standby: bool = True
    """Whether there was one to take over at once."""


def failovers(beats: Sequence[e.Recorded], strikes: Sequence[Strike]) -> list[Failover]:
    """Return each change of the scheduler that acts, by the beats of all of them in their order."""
    last: dict[str, int] = {}
    found: list[Failover] = []
    acting = ""
    for beat in beats:
        if not isinstance(beat.event, e.SchedulerBeat) or not beat.event.active:
            continue
        name = beat.event.scheduler
        if acting and name != acting:
            gap_ms = beat.at_ms - last[acting]
            found.append(
                Failover(
                    at_ms=beat.at_ms,
                    gap_ms=gap_ms,
                    cause=_cause(strikes, beat.at_ms),
                    standby=_standby(strikes, beat.at_ms),
                )
            )
        acting = name
        last[name] = beat.at_ms
    return found


def _cause(strikes: Sequence[Strike], at_ms: int) -> str:
    """Return the last strike at a scheduler before that time, and whether the broker was struck as well."""
    near = [each for each in strikes if at_ms - CAUSE_MS <= each.at_ms <= at_ms]
    told = [
        f"{each.action} {each.process}{each.role and f' ({each.role})'}"
        for kind in ("scheduler", "nats")
        for each in [strike for strike in near if strike.kind == kind][-1:]
    ]
    return ", ".join(told) or "none"


def _standby(strikes: Sequence[Strike], at_ms: int) -> bool:
    """Whether another scheduler was up when the last one before `at_ms` was struck."""
    struck = [each for each in strikes if each.kind == "scheduler" and each.at_ms <= at_ms]
    return not struck or not any(
        each.process != struck[-1].process and each.back_ms + BOOT_MS > struck[-1].at_ms for each in struck
    )


def by_cause(changes: Sequence[Failover]) -> dict[str, Spread]:
    """Return how long it took, by whether somebody could take over, and whether the broker was struck too."""
    found: dict[str, list[int]] = defaultdict(list)
    for each in changes:
        if each.gap_ms >= BOTH_MS:
            what = "with a standby" if each.standby else "both struck, none to take over"
            found["after the broker was struck too" if "nats" in each.cause else what].append(each.gap_ms)
    return {name: spread(values) for name, values in sorted(found.items())}
