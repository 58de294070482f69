"""The door of one workload: priority class, then fair share among owners, then first come."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
from sortedcontainers import SortedList

TURN = 1 << 20  # parts of a turn: owners who wait share one


class Place(NamedTuple):
    """Where a turn stands; smaller is served first. It is given on arrival and never changes."""

    rank: int
    """The priority class, negated."""
    share: int
    """Virtual start, in parts of a turn: how far this owner is ahead of the fair share (start-time fair queueing,
    Goyal, Vin and Cheng, SIGCOMM 1996; the virtual time is that of weighted fair queueing, Demers, Keshav and
    Shenker, SIGCOMM 1989; every turn has weight and length one)."""
    seq: int
    session: str


class QueueSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a queue is rebuilt from."""

    places: list[tuple[Place, str]]
    """Each with its owner."""
    owners: dict[str, int]
    served: int


class FairQueue:
    """Turns that wait for one workload, in the order in which they will be served. All operations O(log n).

    An owner who holds as many slots as one owner may is *barred*: those turns keep their places, and are passed over.
    """

    def __init__(self) -> None:
        self._places: SortedList[Place] = SortedList()
        self._lines: dict[str, SortedList[Place]] = {}  # owner -> its own places
        self._heads: SortedList[tuple[Place, str]] = SortedList()  # the first of each owner who is not barred
        self._barred: dict[str, None] = {}
        self._barred_places = 0
        self._finish: dict[str, int] = {}  # owner -> virtual finish of its last turn
        # Virtual time: each turn served moves it on by one, divided among the owners who wait. By the share of what is
        # served alone it would stand still while newcomers keep coming, and an owner's second turn would starve.
        self._served = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def eligible(self) -> int:
        """Turns that a free slot could be given to."""
        return len(self._places) - self._barred_places

    def arrive(self, session: str, owner: str, *, priority: int, seq: int) -> Place:
        """Put a turn in its place and return that place."""
        share = max(self._served, self._finish.get(owner, 0))
        place = Place(-priority, share, seq, session)
        self._finish[owner] = share + TURN
        self._add(place, owner)
        return place

    def put_back(self, place: Place, owner: str) -> None:
        """Put a turn that was served, and lost its GPU, back where it stood."""
        self._finish.setdefault(owner, self._served)
        self._add(place, owner)

    def _add(self, place: Place, owner: str) -> None:
        self._places.add(place)
        line = self._lines.get(owner)
        if line is None:
            line = self._lines[owner] = SortedList()
        elif owner not in self._barred and place < line[0]:
            self._heads.remove((line[0], owner))
        line.add(place)
        if owner in self._barred:
            self._barred_places += 1
        elif line[0] is place:
            self._heads.add((place, owner))

    def leave(self, place: Place, owner: str, *, served: bool) -> None:
        """Take a turn out; `served` moves the virtual time on."""
        self._places.remove(place)
        line = self._lines[owner]
        if owner in self._barred:
            self._barred_places -= 1
        elif line[0] == place:
            self._heads.remove((place, owner))
            if len(line) > 1:
                self._heads.add((line[1], owner))
        line.remove(place)
        if served:
            self._served += TURN // len(self._lines)
        if not line:
            del self._lines[owner]
            if not served:
                del self._finish[owner]  # whoever cancels everything owes nothing
        if not self._places:
            self._finish.clear()
            self._served = 0

    def bar(self, owner: str) -> None:
        """Pass over the turns of `owner` until `unbar`."""
        if owner in self._barred:
            return
        self._barred[owner] = None
        line = self._lines.get(owner)
        if line is not None:
            self._barred_places += len(line)
            self._heads.remove((line[0], owner))

    def unbar(self, owner: str) -> None:
        """The turns of `owner` may be served again."""
        if owner not in self._barred:
            return
        del self._barred[owner]
        line = self._lines.get(owner)
        if line is not None:
            self._barred_places -= len(line)
            self._heads.add((line[0], owner))

    def first(self, n: int) -> list[Place]:
        """Return the next `n` places at most, whoever's they are."""
        return list(self._places.islice(0, n))

    def next(self, n: int, allowance: Mapping[str, int] | None = None, most: int = 0) -> list[Place]:
        """Return the next `n` places at most that may be served.

        `allowance`: how many more slots an owner may have; `most` for whoever is not in it, 0: no limit.
        """
        if not most:
            return self.first(n) if not self._barred_places else self._merged(n, {}, n)
        return self._merged(n, allowance or {}, most)

    def _merged(self, n: int, allowance: Mapping[str, int], most: int) -> list[Place]:
        """Merge the owners' lines; each gives as many as it is allowed."""
        found: list[Place] = []
        heads: Iterator[tuple[Place, str]] = iter(self._heads)
        fresh = next(heads, None)
        begun: list[tuple[Place, str, int]] = []
        while len(found) < n:
            if fresh is not None and (not begun or fresh[0] < begun[0][0]):
                (place, owner), index = fresh, 0
                fresh = next(heads, None)
            elif begun:
                place, owner, index = heapq.heappop(begun)
            else:
                break
            if index >= allowance.get(owner, most):
                continue
            found.append(place)
            line = self._lines[owner]
            if index + 1 < len(line):
                heapq.heappush(begun, (line[index + 1], owner, index + 1))
        return found

    def position(self, place: Place) -> int:
        """Return 1 for the next to be served."""
        return int(self._places.index(place)) + 1

    def at(self, position: int) -> Place | None:
        """Return the place at `position`, from 1; None if the queue is shorter."""
        return self._places[position - 1] if 1 <= position <= len(self._places) else None

    def smaller(self, place: Place) -> int:
        """Return how many turns will be served before `place` and are not of its class and share."""
        return int(self._places.bisect_left(Place(place.rank, place.share, -1, "")))

    def lead(self, place: Place) -> int:
        """Return by how many turns `place` is ahead of the fair share."""
        return max(0, place.share - self._served)

    def owner_lead(self, owner: str) -> int:
        """Return what the lead of a turn would be that `owner` asked for now."""
        return max(0, self._finish.get(owner, 0) - self._served)

    def snapshot(self) -> QueueSnapshot:
        """Return what `restore` needs; who is barred is known outside."""
        owner_of = {place: owner for owner, line in self._lines.items() for place in line}
        return QueueSnapshot(
            places=[(place, owner_of[place]) for place in self._places],
            owners=dict(sorted(self._finish.items())),
            served=self._served,
        )

    @classmethod
    def restore(cls, snapshot: QueueSnapshot) -> FairQueue:
        """Return the queue that `snapshot` was taken of, with nobody barred."""
        queue = cls()
        for place, owner in snapshot.places:
            queue._add(Place(*place), owner)
        queue._finish = dict(snapshot.owners)
        queue._served = snapshot.served
        return queue
