"""The door of the shop: for each workload its queue, its slots and how fast they come free."""

from __future__ import annotations

from helix_es.core import events as e
from helix_es.core.fairqueue import FairQueue, Place
from helix_es.core.floor import Capacity, Seat
from helix_es.core.slotrate import SlotRate

PRIOR_WORK_MS = 10_000  # before anything was measured: a short answer, and then the session idles
FRONT = -1  # shares of arrivals begin at 0


class Door:
    """Queues and counters, kept by `Occupancy`; every operation is O(log n) in the queue's length."""

    def __init__(self) -> None:
        self.queues: dict[e.Workload, FairQueue] = {}
        self.capacities: dict[e.Workload, Capacity] = {}
        self.rates: dict[e.Workload, SlotRate] = {}
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

    def arrive(self, seat: Seat, *, seq: int, now_ms: int, idle_after_ms: int) -> None:
        """Put `seat` in its place and note the wait that it is told."""
        workload = seat.workload
        queue = self.queue(workload)
        seat.place = queue.arrive(seat.session, seat.owner, priority=seat.priority, seq=seq)
        self.waiting[workload] = None
        position = queue.position(seat.place)
        seat.estimated_ms = self.wait_ms(workload, position, now_ms=now_ms, idle_after_ms=idle_after_ms)

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
            self.rate(seat.workload).calm()

    def freed(self, workload: e.Workload, now_ms: int) -> None:
        """Note that a slot came free: while somebody waits this measures the rate."""
        if workload in self.waiting:
            self.rate(workload).freed(now_ms)

    def wait_ms(self, workload: e.Workload, position: int, *, now_ms: int, idle_after_ms: int) -> int | None:
        """Return the wait to expect at `position` (1 is next), or None while nothing serves the workload."""
        capacity = self.capacity(workload)
        ahead = position - max(0, capacity.free)
        if capacity.slots and ahead <= 0:
            return 0  # admitted as soon as the scheduler looks
        prior_ms = PRIOR_WORK_MS + idle_after_ms
        return self.rate(workload).wait_ms(ahead, slots=capacity.slots, now_ms=now_ms, prior_hold_ms=prior_ms)
