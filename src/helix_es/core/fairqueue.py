"""The door of one workload: priority class, then fair share among owners, then first come."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sortedcontainers import SortedList


class Place(NamedTuple):
    """Where a turn stands; smaller is served first. It is given on arrival and never changes."""

    rank: int
    """The priority class, negated."""
    share: int
    """Virtual start: how many turns this owner is ahead of the fair share (start-time fair queueing,
    Goyal, Vin and Cheng, SIGCOMM 1996, with every turn of weight and length one)."""
    seq: int
    session: str


class QueueSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a queue is rebuilt from."""

    places: list[Place]
    owners: dict[str, tuple[int, int]]
    served: int


class FairQueue:
    """Turns that wait for one workload, in the order in which they will be served. All operations O(log n)."""

    def __init__(self) -> None:
        self._places: SortedList[Place] = SortedList()
        self._owners: dict[
            str, tuple[int, int]
        ] = {}  # owner -> (virtual finish of its last turn, turns waiting)
        self._served = 0  # virtual time: the share of the turn that was served last

    def __len__(self) -> int:
        return len(self._places)

    def arrive(self, session: str, owner: str, *, priority: int, seq: int) -> Place:
        """Put a turn in its place and return that place."""
        finish, waiting = self._owners.get(owner, (0, 0))
        share = max(self._served, finish)
        place = Place(-priority, share, seq, session)
        self._places.add(place)
        self._owners[owner] = (share + 1, waiting + 1)
        return place

    def put_back(self, place: Place, owner: str) -> None:
        """Put a turn that was served, and lost its GPU, back where it stood."""
        finish, waiting = self._owners.get(owner, (self._served, 0))
        self._places.add(place)
        self._owners[owner] = (finish, waiting + 1)

    def leave(self, place: Place, owner: str, *, served: bool) -> None:
        """Take a turn out; `served` moves the virtual time on."""
        self._places.remove(place)
        finish, waiting = self._owners[owner]
        if served:
            self._served = max(self._served, place.share)
        if waiting == 1 and not served:
            del self._owners[owner]  # whoever cancels everything owes nothing
        else:
            self._owners[owner] = (finish, waiting - 1)
        if not self._places:
            self._owners.clear()
            self._served = 0

    def first(self, n: int) -> list[Place]:
        """Return the next `n` places at most."""
        return list(self._places.islice(0, n))

    def position(self, place: Place) -> int:
        """Return 1 for the next to be served."""
        return int(self._places.index(place)) + 1

    def snapshot(self) -> QueueSnapshot:
        """Return what `restore` needs."""
        return QueueSnapshot(places=list(self._places), owners=dict(self._owners), served=self._served)

    @classmethod
    def restore(cls, snapshot: QueueSnapshot) -> FairQueue:
        """Return the queue that `snapshot` was taken of."""
        queue = cls()
        queue._places.update(Place(*place) for place in snapshot.places)
        queue._owners = dict(snapshot.owners)
        queue._served = snapshot.served
        return queue
