"""The door of the shop: for each workload its queue, its slots and how fast they come free."""

from __future__ import annotations

from typing import NamedTuple

from sortedcontainers import SortedList

from helix_es.core import events as e
from helix_es.core.fairqueue import FairQueue, Place
from helix_es.core.floor import Capacity, Seat
from helix_es.core.forecast import Ahead, Supply, wait_ms
from helix_es.core.loading import Coming
from helix_es.core.slotrate import SlotRate

PRIOR_WORK_MS = 10_000  # before anything was measured: a short answer
FRONT = -1  # shares of arrivals begin at 0


class Outlook(NamedTuple):
    """What an estimate of a wait depends on beside the door."""

    now_ms: int
    idle_after_ms: int
    coming: tuple[Coming, ...] = ()
    """GPUs that load the weights, the soonest first."""


class Door:
    """Queues and counters, kept by `Occupancy`; every operation is O(log n) in the queue's length."""

    def __init__(self) -> None:
        self.queues: dict[e.Workload, FairQueue] = {}
        self.capacities: dict[e.Workload, Capacity] = {}
        self.rates: dict[e.Workload, SlotRate] = {}
        self.silences: dict[e.Workload, SortedList[int]] = {}
        self.waiting: dict[e.Workload, None] = {}
        """Workloads with somebody in the queue."""
        self.divided_ms: dict[e.Workload, int] = {}
        """How long somebody waited whom a GPU of the other division could have served."""
        self._barred: dict[str, None] = {}

    def bar(self, owner: str, *, barred: bool) -> None:
        """Pass over the turns of `owner` in every queue, or do so no more."""
        if barred:
            self._barred[owner] = None
        else:
            self._barred.pop(owner, None)
        for queue in self.queues.values():
            (queue.bar if barred else queue.unbar)(owner)

    def queue(self, workload: e.Workload) -> FairQueue:
        """Return the queue of `workload`."""
        queue = self.queues.get(workload)
        if queue is None:
            queue = self.queues[workload] = FairQueue()
            for owner in self._barred:
                queue.bar(owner)
        return queue

    def capacity(self, workload: e.Workload) -> Capacity:
        """Return the slots of `workload`."""
        capacity = self.capacities.get(workload)
        if capacity is None:
            capacity = self.capacities[workload] = Capacity()
        return capacity

    def rate(self, workload: e.Workload) -> SlotRate:
        """Return how fast slots of `workload` come free."""
        rate = self.rates.get(workload)
        if rate is None:
            rate = self.rates[workload] = SlotRate()
        return rate

    def arrive(self, seat: Seat, *, seq: int, now_ms: int) -> int:
        """Put `seat` in its place and return its position, from 1."""
        workload = seat.workload
        queue = self.queue(workload)
        seat.place = queue.arrive(seat.session, seat.owner, priority=seat.priority, seq=seq)
        self.rate(workload).overtaking.arrived(seat.place, seat.owner, queue, now_ms)
        self.waiting[workload] = None
        return queue.position(seat.place)

    def put_back(self, seat: Seat, *, seq: int) -> None:
        """Put `seat`, whose GPU is gone, back where it stood."""
        if seat.place is None:
            # The turn came while the session held a slot, so it never had a place: somebody is in the middle of
            # a conversation and goes to the front of its class.
            seat.place = Place(-seat.priority, FRONT, seq, seat.session)
        self.queue(seat.workload).put_back(seat.place, seat.owner)
        self.waiting[seat.workload] = None

    def leave(self, seat: Seat, *, served: bool) -> None:
        """Take `seat` out of its queue."""
        queue = self.queues[seat.workload]
        if seat.place is not None:
            queue.leave(seat.place, seat.owner, served=served)
        if not len(queue):
            self.waiting.pop(seat.workload, None)

    # -- those who hold slots

    def began(self, workload: e.Workload, at_ms: int) -> None:
        """A session took a slot, and works."""
        self.rate(workload).began(at_ms)

    def hushed(self, workload: e.Workload, at_ms: int) -> None:
        """A session fell silent."""
        self.rate(workload).stopped(at_ms)
        self.silent(workload).add(at_ms)

    def returned(self, workload: e.Workload, since_ms: int, at_ms: int, idle_after_ms: int) -> None:
        """A session that was silent since `since_ms` works again."""
        rate = self.rate(workload)
        rate.began(at_ms)
        rate.broken(at_ms - since_ms, idle_after_ms=idle_after_ms, returned=True)
        self.silent(workload).remove(since_ms)

    def gone(self, workload: e.Workload, since_ms: int | None, at_ms: int, idle_after_ms: int) -> None:
        """A session needs its slot no more, silent since `since_ms`; None: it worked."""
        rate = self.rate(workload)
        if since_ms is None:
            rate.stopped(at_ms)
            since_ms = at_ms
        else:
            self.silent(workload).remove(since_ms)
        rate.broken(at_ms - since_ms, idle_after_ms=idle_after_ms, returned=False)

    def silent(self, workload: e.Workload) -> SortedList[int]:
        """Return since when each silent session of `workload` is, in order, Unix ms."""
        silent = self.silences.get(workload)
        if silent is None:
            silent = self.silences[workload] = SortedList()
        return silent

    # -- those who wait

    def wait_ms(self, workload: e.Workload, position: int, owner: str, outlook: Outlook) -> int | None:
        """Return the wait to expect at `position` (1 is next), where a turn of `owner` stands or would stand.

        None while nothing serves the workload and no GPU loads it.
        """
        capacity, queue, rate = self.capacity(workload), self.queue(workload), self.rate(workload)
        free = max(0, capacity.free)
        if capacity.slots and position <= free:
            return 0  # admitted as soon as the scheduler looks
        if not capacity.slots and not outlook.coming:
            return None
        idle_after_ms = 0 if workload.mode == "finetune" else outlook.idle_after_ms  # free when it ends
        supply = Supply(
            slots=capacity.slots,
            now_ms=outlook.now_ms,
            idle_after_ms=idle_after_ms,
            prior_work_ms=PRIOR_WORK_MS,
            silent_ms=self.silent(workload),
            coming=outlook.coming,
        )
        place = queue.at(position)
        if place is None:
            return wait_ms(rate, Ahead(position - free), supply)
        above, chasing = rate.overtaking.rates(place, owner, queue, outlook.now_ms)
        ahead = Ahead(position - free, queue.smaller(place) - free, above, chasing)
        return wait_ms(rate, ahead, supply)
