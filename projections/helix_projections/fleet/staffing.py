"""How many runner processes to start and which to end, from what runs and what the log says: pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from helix_projections.fleet.provider import Standing


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A runner process that lives."""

    gpu: str
    standing: Standing | None
    """None: its GPU is not in the log."""
    gone: bool = False
    """Its GPU was in the log and is not any more: it left, or was given up as lost. Else it has yet to join."""
    ending: bool = False
    """It was told to end."""

    @property
    def staying(self) -> bool:
        return not (self.ending or self.gone) and self.standing in (None, "serving")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now."""

    start: int = 0
    surplus: int = 0
    """Processes that are too many: most end by themselves, since the scheduler told their GPUs to leave."""
    end: tuple[str, ...] = ()
    """Which of these to end, if they had their time."""


def plan(size: int, places: Sequence[Place], *, most: int) -> Plan:
    """Return what makes `places` as many as `size`, and never more than `most` at once by starting some.

    A GPU that leaves does not count any more: another is started in its place while it still drains. Only runners
    that hold nobody may be ended: those whose GPU is gone first, then those that have drained, then those that have
    not joined.
    """
    living = [place for place in places if not place.ending]
    staying = [place for place in living if place.staying]
    start = max(0, min(size - len(staying), most - len(places)))
    gone = [place.gpu for place in living if place.gone]
    drained = [place.gpu for place in living if place.standing == "drained"]
    absent = [place.gpu for place in staying if place.standing is None]
    surplus = max(0, len(living) - size, len(gone))
    spare = max(0, len(staying) - size)  # ending more of these would only start others
    end = (gone + drained + absent[::-1][:spare])[:surplus]
    return Plan(start=start, surplus=surplus, end=tuple(end))
