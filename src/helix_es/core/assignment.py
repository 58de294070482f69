"""Which workload each GPU serves: from the queues, load times and idle times, with hysteresis; some kept for batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from helix_es.core import events as e
from helix_es.core.decision import MOST, Decision, assign, drain, some, withdrawn
from helix_es.core.floor import Gpu, Make, coefficient, serves
from helix_es.core.needs import LOOKED_AT, Need, needed
from helix_es.core.occupancy import Occupancy

WORSE = 3  # times as long a wait before a GPU is taken from those who wait too


class Assignment:
    """One plan: what is decided in it, and in `before`, counts for what is decided after it."""

    def __init__(self, state: Occupancy, now_ms: int, before: Sequence[Decision] = ()) -> None:
        self._state = state
        self._fleet = state.fleet
        self._now_ms = now_ms
        self.kept = state.fleet.kept
        """GPUs that are kept for batch work, after this plan."""
        self._withdrawn = withdrawn(state, before)
        self._looks: dict[tuple[e.Workload, e.Workload, Make], Iterator[str]] = {}
        self._plan: list[Decision] = []
        self.taken: set[str] = {each.event.gpu for each in before if isinstance(each.event, e.GpuAssigned)}
        """GPUs that are dealt with: a second decision about one could never be stored."""
        # Chats first: batch work has what is kept for it, and may have the rest while no chat waits for that.
        self.needs = sorted(
            needed(state, now_ms),
            key=lambda need: (need.workload.mode == "finetune", -need.waited_ms, need.workload),
        )

    def plan(self, room: int) -> list[Decision]:
        """Return at most `room` assignments and drains."""
        self._room = max(0, room)
        self._place()
        for need in self.needs:
            self._switch(need)
            self._reclaim(need)
            self._relieve(need)
        self._restore()
        return self._plan[: self._room]

    # -- GPUs that serve nothing

    def _place(self) -> None:
        for name in some(self._fleet.unassigned, self._now_ms, self._room):
            gpu = self._state.gpus[name]
            if name in self._state.stranded or gpu.sessions:
                continue
            found = self._choose(gpu)
            if found is not None:
                self._assign(gpu, *found)

    def _choose(self, gpu: Gpu) -> tuple[e.Workload, str] | None:
        """What it drained for or is needed for; else what nothing serves, what it has in memory, or its first."""
        own = serves(gpu)
        options = [each for each in gpu.workloads if self._allowed(gpu, each)]
        for need in sorted(self.needs, key=lambda each: each.workload != gpu.next):
            if need.missing > 0 and need.workload in options:
                return need.workload, f"{need.missing} slots missing for {need.workload.model}"
        for each in options:
            if each not in self._fleet.seated and not self._planned(each):
                return each, "nothing else serves it"
        if own in options and own is not None:
            return own, "still in memory"
        return (options[0], "its first choice") if options else None

    def _planned(self, workload: e.Workload) -> bool:
        return any(
            isinstance(each.event, e.GpuAssigned)
            and each.event.slots > 0
            and (each.event.type, each.event.model) == (workload.type, workload.model)
            and (each.event.purpose == "batch") == (workload.mode == "finetune")
            for each in self._plan
        )

    def _allowed(self, gpu: Gpu, workload: e.Workload) -> bool:
        """Whether it fits, and leaves enough GPUs to batch work."""
        if coefficient(self._state.policy, gpu, workload) <= 0 or self._fleet.fails(
            gpu, workload, self._now_ms
        ):
            return False
        if workload.mode == "finetune" or self._fleet.makes[gpu.gpu].batch is None:
            return True
        return self.kept - (not self._out(gpu)) >= self._state.policy.reserved

    @staticmethod
    def _out(gpu: Gpu) -> bool:
        """Whether it is not kept for batch work now."""
        return gpu.purpose == "chat" or gpu.lent

    def _assign(self, gpu: Gpu, workload: e.Workload, reason: str) -> None:
        self._plan.append(assign(self._state, gpu, workload, reason, self._now_ms))
        self.taken.add(gpu.gpu)
        if self._fleet.makes[gpu.gpu].batch is not None:
            self.kept += self._out(gpu) - (workload.mode == "create")
        slots = coefficient(self._state.policy, gpu, workload)
        for need in self.needs:
            if need.workload == workload:
                need.missing -= slots

    # -- GPUs that serve what nobody waits for

    def _switch(self, need: Need) -> None:
        """Give it vacant GPUs of workloads that nobody waits for, if loading is faster than waiting."""
        if need.wait_ms is not None and need.wait_ms <= self._fleet.load(need.workload.model):
            return
        while need.missing > 0 and len(self._plan) < self._room:
            gpu = self._vacant(need.workload) or self._dozing(need.workload)
            if gpu is None:
                return
            self._give(gpu, need, "nobody waits for what it served")

    def _dozing(self, wanted: e.Workload) -> Gpu | None:
        """Return a GPU of which nobody waits for the workload, and whose sessions all fell silent long ago."""
        waited_for = {each.workload for each in self.needs}
        for work, make in self._others(wanted):
            if work in waited_for:
                continue
            for gpu in self._emptiest(work, make):
                dozing = bool(gpu.sessions) and all(self._dozes(each) for each in gpu.sessions)
                if dozing and self._may_go(gpu, wanted):
                    return gpu
        return None

    def _dozes(self, session: str) -> bool:
        seat, policy = self._state.seats[session], self._state.policy
        silent_ms = max(policy.idle_after_ms, policy.switch_after_ms)
        return seat.phase == "idle" and self._now_ms - seat.active_ms >= silent_ms

    def _others(self, wanted: e.Workload) -> list[tuple[e.Workload, Make]]:
        """Return other workloads with GPUs that can do the one that is wanted."""
        return [
            (work, make)
            for work in sorted(self._fleet.seated)
            for make in sorted(self._fleet.seated[work])
            if work != wanted and wanted in make.workloads and not make.fixed
        ]

    def _vacant(self, wanted: e.Workload) -> Gpu | None:
        """Return the GPU that has been vacant longest, of those that may change."""
        waited_for = {each.workload for each in self.needs}
        best: Gpu | None = None
        for work in sorted(self._fleet.vacant):
            if work == wanted or work in waited_for:
                continue
            for make in sorted(self._fleet.vacant[work]):
                if make.fixed or wanted not in make.workloads:
                    continue
                gpu = self._first(work, make, wanted)
                if gpu is not None and (best is None or gpu.vacant_ms < best.vacant_ms):
                    best = gpu
        return best

    def _first(self, work: e.Workload, make: Make, wanted: e.Workload) -> Gpu | None:
        """Return the first that may change, longest vacant first; each is looked at once in a plan."""
        key = (wanted, work, make)
        names = self._looks.get(key)
        if names is None:
            names = self._looks[key] = iter(list(islice(self._fleet.vacant[work][make], MOST)))
        settled_ms = self._now_ms - self._state.policy.switch_after_ms
        for name in names:
            gpu = self._state.gpus[name]
            if gpu.vacant_ms > settled_ms:
                return None
            if name not in self.taken and self._may_go(gpu, wanted):
                return gpu
        return None

    def _may_go(self, gpu: Gpu, wanted: e.Workload) -> bool:
        """Whether it can be taken from what it serves: nobody was admitted there who needs its room."""
        work = serves(gpu)
        if work is None or not gpu.settled or not self._allowed(gpu, wanted):
            return False
        capacity = self._state.door.capacity(work)
        left = capacity.room - self._withdrawn.get(work, 0) - _room(gpu)
        return left >= capacity.admitted

    def _drain(self, gpu: Gpu, target: e.Workload, reason: str) -> None:
        self._plan.append(drain(self._state, gpu, target, reason, self._now_ms))
        self.taken.add(gpu.gpu)
        work = serves(gpu)
        if work is not None:
            self._withdrawn[work] = self._withdrawn.get(work, 0) + _room(gpu)
        if target.mode == "create" and gpu.purpose == "batch" and not gpu.lent:
            self.kept -= 1  # as good as gone from batch work

    def _give(self, gpu: Gpu, need: Need, reason: str) -> None:
        self._drain(gpu, need.workload, reason)
        need.missing -= coefficient(self._state.policy, gpu, need.workload)

    # -- GPUs that batch work borrowed

    def _reclaim(self, need: Need) -> None:
        """Chats get back what batch work holds beyond its reservation."""
        if need.workload.mode != "create":
            return
        if need.wait_ms is not None and need.wait_ms <= self._fleet.load(need.workload.model):
            return
        for work, make in self._others(need.workload):
            if work.mode != "finetune":
                continue
            for gpu in self._emptiest(work, make):
                if need.missing <= 0 or len(self._plan) >= self._room:
                    return
                if self._may_go(gpu, need.workload):
                    self._give(gpu, need, "chats need what batch work borrowed")

    def _emptiest(self, work: e.Workload, make: Make) -> list[Gpu]:
        """Return some GPUs of a kind that may change, the emptiest first."""
        names = self._fleet.seated[work][make]
        found = [self._state.gpus[name] for name in islice(names, LOOKED_AT) if name not in self.taken]
        return sorted((each for each in found if each.settled), key=lambda gpu: len(gpu.sessions))

    # -- models that would starve

    def _relieve(self, need: Need) -> None:
        """Somebody waited long, and others wait far less: drain a GPU of the workload that has most, one at a time."""
        work, policy = need.workload, self._state.policy
        if need.missing <= 0 or need.waited_ms < policy.starve_after_ms:
            return
        if self._fleet.coming.get(work, 0) > 0 or self._planned(work):
            return
        alone = work not in self._fleet.seated
        for _, other, make in sorted((-self._gpus(w), w, m) for w, m in self._others(work)):
            if not alone and not self._better_off(other, need):
                continue
            if work.mode == "finetune" and other.mode == "create":
                continue  # they would take it back at once; what chats do not use it is given without this
            for gpu in self._emptiest(other, make):
                # A GPU that took long to load must serve as long before it is loaded anew.
                tenure_ms = max(policy.starve_after_ms, self._fleet.load(other.model))
                served_ms = self._now_ms - gpu.ready_ms if gpu.state == "ready" else 0
                if served_ms >= tenure_ms and self._may_go(gpu, work):
                    self._give(gpu, need, f"{work.model} waits for {need.waited_ms / 1000:.0f} s")
                    return

    def _gpus(self, work: e.Workload) -> int:
        return sum(len(names) for names in self._fleet.seated[work].values())

    def _better_off(self, other: e.Workload, need: Need) -> bool:
        """Whether `other` has GPUs to spare: more than one, and a far shorter wait."""
        if need.wait_ms is None or self._gpus(other) < 2:
            return False
        theirs = next((each for each in self.needs if each.workload == other), None)
        if theirs is None:
            wait_ms = 0
        elif theirs.wait_ms is None:
            return False
        else:
            wait_ms = theirs.wait_ms
        load_ms = self._fleet.load(need.workload.model)
        return need.wait_ms > WORSE * wait_ms + load_ms + self._state.policy.starve_after_ms

    # -- what is kept for batch work

    def _restore(self) -> None:
        """GPUs were lost, or more are to be kept: chats give some back."""
        fleet = self._fleet
        wanted = min(self._state.policy.reserved, fleet.batchable)
        short = wanted - self.kept - fleet.returning
        for work in sorted(fleet.seated) if short > 0 else ():
            if work.mode == "finetune":
                continue
            for make in sorted(fleet.seated[work]):
                if make.batch is None or make.fixed:
                    continue
                for gpu in self._emptiest(work, make):
                    if short <= 0:
                        return
                    if coefficient(self._state.policy, gpu, make.batch) > 0:
                        self._drain(gpu, make.batch, "kept for batch work")
                        short -= 1


def _room(gpu: Gpu) -> int:
    return max(0, gpu.slots - len(gpu.sessions)) if gpu.state == "ready" else 0
