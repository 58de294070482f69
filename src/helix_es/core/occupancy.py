"""Which session holds which GPU and who waits: the fold of the log that every decision is made from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sortedcontainers import SortedList

from helix_es.core import events as e
from helix_es.core.door import Door, Outlook
from helix_es.core.fleet import Fleet
from helix_es.core.floor import Gpu, Seat
from helix_es.core.loading import loading
from helix_es.core.session import NEXT, Phase
from helix_es.core.subjects import about

OUT_OF_MEMORY = "out_of_memory"
ERROR_CHARS = 300  # of an error that is kept until the turn ends


class Occupancy:
    """State after a prefix of the log. `apply` costs O(log n) and never looks at the whole fleet."""

    def __init__(self) -> None:
        self.seq = 0
        self.now_ms = 0
        self.folded_ms = 0
        """Timestamp of the last record; `now_ms` may be past it."""
        self.policy = e.Policy()
        self.policy_seq = 0
        self.seats: dict[str, Seat] = {}
        self.door = Door()
        self.fleet = Fleet(self.door.capacity)
        self.held: dict[str, int] = {}
        """Owner -> slots that its sessions hold or were admitted to."""
        self.waiting: dict[str, int] = {}
        """Owner -> turns at the door."""
        self.misfits = 0
        """Stored messages that were unreadable or could not happen where they stood."""
        # Indexes, so that a decision only looks at what it is about.
        self.idle: dict[e.Workload, OrderedDict[str, int]] = {}
        """Silent sessions in the order in which they fell silent, and since when, Unix ms."""
        self.admitted: dict[e.Workload, dict[str, None]] = {}
        """Sessions whose turn is a task that no GPU has started yet, in the order of their admission."""
        self.orphans: dict[str, e.ReleaseReason] = {}
        self.stranded: dict[str, int] = {}
        """GPU -> sessions that an earlier incarnation of it still holds in the log."""
        self.deadlines: SortedList[tuple[int, str]] = SortedList()
        self.poisoned: dict[str, None] = {}
        """Sessions at the door whose turn failed with too many GPUs."""
        self.yielding: dict[str, None] = {}
        """Sessions that were asked to give way and are not released yet."""

    @property
    def gpus(self) -> dict[str, Gpu]:
        return self.fleet.gpus

    @property
    def fences(self) -> dict[str, int]:
        return self.fleet.fences

    # -- questions -----------------------------------------------------------------------------------------

    def position(self, seat: Seat) -> int | None:
        """Return 1 for the next to be admitted, None if the session does not wait."""
        if seat.phase != "queued" or seat.place is None:
            return None
        return self.door.queue(seat.workload).position(seat.place)

    def wait_ms(self, workload: e.Workload, position: int, now_ms: int | None = None) -> int | None:
        """Return the wait to expect at `position`, or None while nothing serves the workload or loads it.

        `now_ms` is the clock of whoever asks, by default the state's.
        """
        return self._wait_ms(workload, position, self.now_ms if now_ms is None else now_ms)

    def _wait_ms(self, workload: e.Workload, position: int, now_ms: int) -> int | None:
        if 0 < position <= self.door.capacity(workload).free:
            return 0  # admitted as soon as the scheduler looks
        place = self.door.queue(workload).at(position)
        owner = "" if place is None else self.seats[place.session].owner
        outlook = Outlook(now_ms, self.policy.idle_after_ms, loading(self.fleet, workload, now_ms))
        return self.door.wait_ms(workload, position, owner, outlook)

    def admissible(self, workload: e.Workload, most: int) -> int:
        """Return how many of those who wait a free slot could be given to, `most` at most; owners' limits count."""
        queue, limit = self.door.queue(workload), self.policy.slots_per_owner
        if not limit:
            return min(most, queue.eligible)
        return len(queue.next(most, {owner: limit - held for owner, held in self.held.items()}, limit))

    def divided_ms(self, workload: e.Workload, now_ms: int) -> int:
        """Return for how long, in all, somebody waited for `workload` whom a GPU kept for the other work could serve.

        For chats that is a GPU that is kept free for batch work, for batch work one that serves chats.
        """
        total = self.door.divided_ms.get(workload, 0)
        return total + max(0, now_ms - self.folded_ms) * self._divided(workload)

    def _divided(self, workload: e.Workload) -> bool:
        if workload not in self.door.waiting or self.door.capacity(workload).free > 0:
            return False
        if workload.mode == "finetune":
            return self.fleet.chatting > 0
        return any(
            workload in make.workloads
            for work, makes in self.fleet.vacant.items()
            if work.mode == "finetune"
            for make in makes
        )

    # -- the fold ------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Move the clock to a stored beat; it never goes back."""
        if now_ms > self.now_ms:
            self.now_ms = now_ms

    def apply(self, record: e.Recorded) -> None:
        """Fold the next record. Records come in log order, each once."""
        self.seq = record.seq
        if record.at_ms > self.folded_ms:
            if self.fleet.batchable:
                self._divide(record.at_ms - self.folded_ms)
            self.folded_ms = record.at_ms
        if record.at_ms > self.now_ms:
            self.now_ms = record.at_ms
        event = record.event
        if event is None:
            self._unreadable(record)
            return
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, record, event)

    def _divide(self, passed_ms: int) -> None:
        for workload in self.door.waiting:
            if self._divided(workload):
                self.door.divided_ms[workload] = self.door.divided_ms.get(workload, 0) + passed_ms

    def _unreadable(self, record: e.Recorded) -> None:
        self.misfits += 1
        if record.subject.count(".") < 2:  # a stranger's: no fence covers such a subject
            return
        root, name = about(record.subject)
        if root == "session" and name in self.seats:
            self.seats[name].last_seq = record.seq
        elif root == "gpu":
            self.fleet.fence(name, record.seq)
        elif root == "fleet" and name != "policy":
            self.fleet.pool(name).last_seq = record.seq

    # -- sessions ------------------------------------------------------------------------------------------

    def _queued(self, record: e.Recorded, event: e.TurnQueued) -> None:
        if event.session in self.seats:
            self._misfit(record, event)
            return
        workload = e.Workload(event.mode, event.type, event.model)
        seat = Seat(
            session=event.session,
            workload=workload,
            owner=event.owner,
            priority=event.priority,
            phase="queued",
            last_seq=record.seq,
            turn=event.turn,
            queued_ms=record.at_ms,
            deadline_ms=None if event.max_wait_ms is None else record.at_ms + event.max_wait_ms,
            divided_ms=self.divided_ms(workload, record.at_ms),
            active_ms=record.at_ms,
        )
        if seat.deadline_ms is not None:
            self.deadlines.add((seat.deadline_ms, seat.session))
        self._wait(seat.owner, +1)
        self.seats[event.session] = seat
        position = self.door.arrive(seat, seq=record.seq, now_ms=record.at_ms)
        seat.estimated_ms = self._wait_ms(workload, position, record.at_ms)

    def _misfit(self, record: e.Recorded, event: Any) -> None:
        self.misfits += 1
        seat = self.seats.get(event.session)
        if seat is not None:
            seat.last_seq = record.seq

    def _step(self, record: e.Recorded, event: Any, turn: int | None) -> tuple[Seat, Phase] | None:
        """Return the seat in its new phase, with the phase before; None if `event` cannot happen to it."""
        seat = self.seats.get(event.session)
        if seat is None:
            return None  # released or closed: nothing that a decision needs
        before = seat.phase
        after = NEXT[type(event)].get(before)
        if after is None or (turn is not None and turn != seat.turn):
            self._misfit(record, event)
            return None
        seat.last_seq = record.seq
        seat.active_ms = record.at_ms
        seat.phase = after
        return seat, before

    def _admitted(self, record: e.Recorded, event: e.TurnAdmitted) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, _ = step
        seat.attempt = event.attempt
        if event.attempt == 1:
            self.door.rate(seat.workload).accuracy.admitted(seat.estimated_ms, event.waited_ms)
        self._leave_door(seat, served=True)
        self.door.capacity(seat.workload).admitted += 1
        self.admitted.setdefault(seat.workload, {})[seat.session] = None
        self._hold(seat.owner, +1)

    def _wait(self, owner: str, change: int) -> None:
        self.waiting[owner] = self.waiting.get(owner, 0) + change
        if not self.waiting[owner]:
            del self.waiting[owner]

    def _leave_door(self, seat: Seat, *, served: bool) -> None:
        self.door.leave(seat, served=served)
        self._wait(seat.owner, -1)
        self.poisoned.pop(seat.session, None)
        if seat.deadline_ms is not None:
            self.deadlines.remove((seat.deadline_ms, seat.session))
            seat.deadline_ms = None

    def _hold(self, owner: str, change: int) -> None:
        """Count what `owner` holds; at the limit its turns are passed over."""
        before = self.held.get(owner, 0)
        after = before + change
        if after:
            self.held[owner] = after
        else:
            self.held.pop(owner, None)
        most = self.policy.slots_per_owner
        if most and (before >= most) != (after >= most):
            self.door.bar(owner, barred=after >= most)

    def _continued(self, record: e.Recorded, event: e.TurnContinued) -> None:
        seat = self.seats.get(event.session)
        if seat is None or event.turn != seat.turn + 1 or event.gpu != seat.gpu or seat.phase != "idle":
            self._misfit(record, event)
            return
        self._step(record, event, None)
        seat.turn = event.turn
        seat.attempt = event.attempt
        seat.queued_ms = record.at_ms
        seat.place = None
        since_ms = self._no_more_silent(seat)
        if since_ms is not None:
            self.door.returned(seat.workload, since_ms, record.at_ms, self.policy.idle_after_ms)

    def _started(self, record: e.Recorded, event: e.TurnStarted) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, before = step
        if before == "admitted":
            self._not_admitted(seat)
            self._bind(seat, event.gpu, event.incarnation)
            self.door.began(seat.workload, record.at_ms)

    def _not_admitted(self, seat: Seat) -> None:
        self.door.capacity(seat.workload).admitted -= 1
        del self.admitted[seat.workload][seat.session]

    def _bind(self, seat: Seat, gpu_id: e.GpuId, incarnation: str) -> None:
        seat.gpu, seat.incarnation = gpu_id, incarnation
        gpu = self.gpus.get(gpu_id)
        if gpu is not None and gpu.incarnation == incarnation:
            self.fleet.bind(gpu, seat.session)
            self.door.capacity(seat.workload).bound += 1
        else:  # a runner that was given up while it held the task: nobody will serve this
            self._strand(seat, "lost")

    def _strand(self, seat: Seat, reason: e.ReleaseReason) -> None:
        self.orphans.setdefault(seat.session, reason)
        if seat.gpu is not None:
            self.stranded[seat.gpu] = self.stranded.get(seat.gpu, 0) + 1

    def _noted(self, record: e.Recorded, event: e.TurnProgressed | e.TurnCancelling) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, _ = step
        if seat.yield_ms is not None and isinstance(event, e.TurnProgressed) and event.checkpoint:
            seat.yielded = True

    def _yielding(self, record: e.Recorded, event: e.TurnYielding) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, _ = step
        seat.yield_ms = record.at_ms
        self.yielding[seat.session] = None

    def _returned(self, record: e.Recorded, event: e.TurnReturned) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, _ = step
        seat.strikes.append(f"{event.gpu}: {event.error.code}: {event.error.message[:ERROR_CHARS]}")
        self.orphans.setdefault(seat.session, "returned")
        if event.error.code == OUT_OF_MEMORY:
            self.fleet.strain(event.gpu, seat.incarnation, seat.workload, event.held)

    def _ended(self, record: e.Recorded, event: e.TurnCompleted | e.TurnFailed | e.TurnCancelled) -> None:
        if (step := self._step(record, event, event.turn)) is None:
            return
        seat, before = step
        seat.strikes.clear()
        if seat.phase == "idle" and seat.workload.mode == "finetune":
            self.orphans.setdefault(
                seat.session, "ended"
            )  # batch work has one turn: nobody comes back for the slot
            return
        if seat.phase == "idle":
            idle = self.idle.get(seat.workload)
            if idle is None:
                idle = self.idle[seat.workload] = OrderedDict()
            idle[seat.session] = record.at_ms
            self.door.hushed(seat.workload, record.at_ms)
            return
        self._unseat_waiting(seat, before)

    def _unseat_waiting(self, seat: Seat, before: Phase) -> None:
        """A session that holds no slot goes: out of the queue, or out of those a slot is set aside for."""
        if before == "queued":
            self._leave_door(seat, served=False)
        elif before == "admitted":
            self._not_admitted(seat)
            self._hold(seat.owner, -1)
        del self.seats[seat.session]

    def _released(self, record: e.Recorded, event: e.SessionReleased) -> None:
        seat = self.seats.get(event.session)
        if seat is None or seat.gpu != event.gpu or NEXT[e.SessionReleased].get(seat.phase) is None:
            self._misfit(record, event)
            return
        before = seat.phase
        self._step(record, event, None)
        self._unbind(seat, record.at_ms)
        if seat.phase == "queued":
            if before == "running" and event.reason in ("lost", "restarted"):
                seat.strikes.append(f"{event.gpu}: {event.reason}")
            self._wait(seat.owner, +1)
            self.door.put_back(seat, seq=record.seq)
            if len(seat.strikes) >= self.policy.attempts:
                self.poisoned[seat.session] = None
        else:
            del self.seats[seat.session]

    def _unbind(self, seat: Seat, at_ms: int) -> None:
        if seat.session in self.orphans and seat.gpu is not None and seat.gpu in self.stranded:
            gpu = self.gpus.get(seat.gpu)
            if gpu is None or seat.session not in gpu.sessions:
                self.stranded[seat.gpu] -= 1
                if not self.stranded[seat.gpu]:
                    del self.stranded[seat.gpu]
        self.orphans.pop(seat.session, None)
        self.yielding.pop(seat.session, None)
        seat.yield_ms, seat.yielded = None, False
        self._hold(seat.owner, -1)
        if seat.phase != "closed":  # it went then
            self._gone(seat, at_ms)
        gpu = self.gpus.get(seat.gpu or "")
        if gpu is not None and seat.session in gpu.sessions:
            self.fleet.unbind(gpu, seat.session, at_ms)
            self.door.capacity(seat.workload).bound -= 1
        seat.gpu, seat.incarnation = None, ""

    def _no_more_silent(self, seat: Seat) -> int | None:
        """Return since when it was; None if it was not."""
        idle = self.idle.get(seat.workload)
        return None if idle is None else idle.pop(seat.session, None)

    def _gone(self, seat: Seat, at_ms: int) -> None:
        """A session needs its slot no more."""
        since_ms = self._no_more_silent(seat)
        self.door.gone(seat.workload, since_ms, at_ms, self.policy.idle_after_ms)

    def _closed(self, record: e.Recorded, event: e.SessionClosed) -> None:
        if (step := self._step(record, event, None)) is None:
            return
        seat, before = step
        if seat.gpu is None:
            self._unseat_waiting(seat, before)
            return
        self._gone(seat, record.at_ms)
        self.orphans.setdefault(seat.session, "closed")

    # -- GPUs ----------------------------------------------------------------------------------------------

    def _joined(self, record: e.Recorded, event: e.GpuJoined) -> None:
        self._drop_gpu(event.gpu, "restarted")
        self.fleet.joined(record, event)

    def _left(self, record: e.Recorded, event: e.GpuLeft) -> None:
        if self.fleet.live(record, event) is not None:
            self.fleet.could_not_load(record, event)
            self._drop_gpu(event.gpu, "drained")

    def _lost(self, record: e.Recorded, event: e.GpuLost) -> None:
        if self.fleet.live(record, event) is not None:
            self._drop_gpu(event.gpu, "lost")

    def _drop_gpu(self, gpu_id: e.GpuId, reason: e.ReleaseReason) -> None:
        gpu = self.fleet.drop(gpu_id)
        if gpu is None:
            return
        for session in gpu.sessions:  # at most its slots, not the fleet
            seat = self.seats[session]
            self.door.capacity(seat.workload).bound -= 1
            self._strand(seat, reason)

    def _policy(self, record: e.Recorded, event: e.PolicySet) -> None:
        before = self.policy.slots_per_owner
        self.policy, self.policy_seq = event.policy, record.seq
        self.fleet.judge(event.policy)
        most = event.policy.slots_per_owner
        if most != before:
            for owner, held in self.held.items():
                self.door.bar(owner, barred=bool(most) and held >= most)


_HANDLERS: dict[type[e.Event], Callable[[Occupancy, e.Recorded, Any], None]] = {
    e.TurnQueued: Occupancy._queued,
    e.TurnAdmitted: Occupancy._admitted,
    e.TurnContinued: Occupancy._continued,
    e.TurnStarted: Occupancy._started,
    e.TurnProgressed: Occupancy._noted,
    e.TurnCancelling: Occupancy._noted,
    e.TurnYielding: Occupancy._yielding,
    e.TurnReturned: Occupancy._returned,
    e.TurnCompleted: Occupancy._ended,
    e.TurnFailed: Occupancy._ended,
    e.TurnCancelled: Occupancy._ended,
    e.SessionReleased: Occupancy._released,
    e.SessionClosed: Occupancy._closed,
    e.GpuJoined: Occupancy._joined,
    e.GpuAssigned: lambda state, record, event: state.fleet.assigned(record, event),
    e.GpuReady: lambda state, record, event: state.fleet.ready(record, event),
    e.GpuLeft: Occupancy._left,
    e.GpuLost: Occupancy._lost,
    e.FleetResized: lambda state, record, event: state.fleet.resized(record, event),
    e.PolicySet: Occupancy._policy,
}
