"""Who will go ahead of those who wait: arrivals of higher classes, and of owners who had less than their share."""

from __future__ import annotations

import msgspec

from helix_es.core.fairqueue import FairQueue, Place

REMEMBERED = 64  # arrivals: enough to know the mix of owners, few enough to follow it
LEAST_SPAN_MS = 5_000  # a burst alone is no rate


class Comer(msgspec.Struct, kw_only=True):
    """An owner's part in the last arrivals, in one class."""

    owner: str
    rank: int
    times: int = 0
    lead: int = 0
    """Turns by which it was ahead of the fair share, the last time."""


class Overtaking(msgspec.Struct, kw_only=True):
    """The last arrivals at one queue: those to come are taken to be like them."""

    arrivals: list[tuple[int, str]] = msgspec.field(default_factory=list)
    """When, Unix ms, and who: a key of `comers`."""
    comers: dict[str, Comer] = msgspec.field(default_factory=dict)

    def arrived(self, place: Place, owner: str, queue: FairQueue, at_ms: int) -> None:
        """Note an arrival."""
        key = f"{place.rank}/{owner}"
        comer = self.comers.get(key)
        if comer is None:
            comer = self.comers[key] = Comer(owner=owner, rank=place.rank)
        comer.times += 1
        comer.lead = queue.lead(place)
        self.arrivals.append((at_ms, key))
        if len(self.arrivals) > REMEMBERED:
            self._forget(self.arrivals.pop(0)[1])

    def _forget(self, key: str) -> None:
        self.comers[key].times -= 1
        if not self.comers[key].times:
            del self.comers[key]

    def rates(self, place: Place, owner: str, queue: FairQueue, now_ms: int) -> tuple[float, float]:
        """Return how many arrivals a ms will go ahead of `place`, which is of `owner`.

        First those of higher classes, who do as long as it waits. Then those of its class, who do while turns in
        smaller shares are served: the fair share catches up with both, so that an owner with lead l overtakes one
        with lead m for (m - l)/m of that time.
        """
        if not self.arrivals:
            return 0.0, 0.0
        mine = queue.lead(place)
        above = chasing = 0
        for comer in self.comers.values():
            if comer.rank < place.rank:
                above += comer.times
            elif mine and comer.rank == place.rank and comer.owner != owner:
                # Whoever came once stands for others who will come for the first time, as far ahead as it was then.
                lead = comer.lead if comer.times == 1 else queue.owner_lead(comer.owner)
                if lead < mine:
                    chasing += comer.times * (mine - lead)
        span_ms = max(LEAST_SPAN_MS, now_ms - self.arrivals[0][0])
        return above / span_ms, chasing / mine / span_ms if chasing else 0.0
