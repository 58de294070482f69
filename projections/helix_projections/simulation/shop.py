"""The whole shop in virtual time: the real fold and decisions over a log in memory, everybody else simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_projections.simulation.broker import Broker
from helix_projections.simulation.clients import Clients
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.gpu import Job, Offer, SimulatedGpu
from helix_projections.simulation.service import Service
from helix_projections.simulation.traces import Arrival

BEAT_MS = 250  # the scheduler's beat: how often it looks when nothing happens
HOPELESS_MS = 3_600_000  # whoever still waits after an hour without a single fact will wait for ever

UNDECIDED = frozenset({e.SessionCreated, e.TurnAdmitted, e.TurnContinued, e.TurnStarted, e.TurnCompleted})
"""Facts that alone give nothing to decide."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated."""

    policy: e.Policy = e.Policy()
    offers: list[Offer]
    service: Service = Service()
    workload: e.Workload = e.Workload("create", "text", "mistral")
    owners: int = 0
    """Among how many the sessions are dealt out; 0: each has its own."""
    open_ms: int = 0
    """When the trace begins: later than 0, and the GPUs may be ready by then."""


class Shop:
    """Run it once; then `records` is the log and `state` its fold."""

    def __init__(self, scenario: Scenario, arrivals: Iterable[Arrival]) -> None:
        self.records: list[e.Recorded] = []
        self.state = Occupancy()
        self.clock = Clock()
        self._scenario = scenario
        self._arrivals: Iterator[Arrival] = iter(arrivals)
        self._broker = Broker()
        self._clients = Clients(self.state, self.append, scenario.workload, scenario.owners)
        self._gpus: dict[str, SimulatedGpu] = {}
        self._beat_ms = -1
        self._changed = True
        self._looked_ms = -1
        self._reactions: dict[type[e.Event], Callable[[Any, int], None]] = {
            e.TurnAdmitted: self._admitted,
            e.TurnContinued: self._continued,
            e.SessionReleased: self._released,
            e.GpuAssigned: self._assigned,
        }

    def run(self) -> None:
        """Let everything happen, until nothing is left to happen."""
        self.append(e.PolicySet(policy=self._scenario.policy))
        for offer in self._scenario.offers:
            gpu = SimulatedGpu(offer, self._scenario.service, self.clock, self._done)
            self._gpus[offer.gpu] = gpu
            self.clock.at(offer.join_ms, lambda gpu=gpu: self._join(gpu))  # type: ignore[misc]
        self._next_arrival()
        while self.clock.step():
            self._schedule()

    def append(self, event: e.AnyEvent) -> int:
        """Store and fold a fact, and let whom it concerns react; return its sequence.

        Nothing else is under way, so no fence can fail. Subjects are left out: `subject_of` gives them.
        """
        record = e.Recorded(len(self.records) + 1, self.clock.now_ms, "", event)
        self.records.append(record)
        self.state.apply(record)
        kind = type(event)
        if kind not in UNDECIDED:
            self._changed = True
        reaction = self._reactions.get(kind)
        if reaction is not None:
            reaction(event, record.seq)
        return record.seq

    # -- the scheduler

    def _schedule(self) -> None:
        """Decide until nothing is to be decided, and look again at the next beat while somebody waits."""
        now_ms = self.clock.now_ms
        while self._worth_a_look(now_ms):
            self._changed = False
            for decision in decide(self.state, now_ms):
                self.append(decision.event)
        hopeless = now_ms - self.state.folded_ms >= HOPELESS_MS
        if self.state.door.waiting and self._beat_ms <= now_ms and not hopeless:
            self._beat_ms = now_ms - now_ms % BEAT_MS + BEAT_MS
            self.clock.at(self._beat_ms, self._beat)

    def _beat(self) -> None:
        """Nothing happened but that the clock moved on: a wait, or what a GPU does, may now be long enough."""
        self._changed = True

    def _worth_a_look(self, now_ms: int) -> bool:
        """Whether there can be anything to decide. It saves most of the looks and changes no decision.

        Somebody who starts or ends a turn, or goes on with a conversation, changes nothing for those who wait: only a
        silence does that has become long enough.
        """
        state = self.state
        if state.orphans:
            return True
        if not self._changed:
            return any(self._due(workload, now_ms) for workload in state.door.waiting)
        fleet = state.fleet
        return bool(
            state.door.waiting
            or fleet.unassigned
            or fleet.over
            or fleet.resizable
            or state.policy.pools
            or state.policy.reserved
        )

    def _due(self, workload: e.Workload, now_ms: int) -> bool:
        idle = self.state.idle.get(workload)
        if not idle or self._looked_ms == now_ms:
            return False
        longest = self.state.seats[next(iter(idle))]
        due = now_ms - longest.active_ms >= self.state.policy.idle_after_ms
        if due:
            self._looked_ms = now_ms
        return due

    # -- clients

    def _next_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self.clock.at(self._scenario.open_ms + arrival.at_ms, lambda: self._arrive(arrival))

    def _arrive(self, arrival: Arrival) -> None:
        self._clients.arrive(arrival)
        self._next_arrival()

    # -- GPUs

    def _join(self, gpu: SimulatedGpu) -> None:
        offer = gpu.offer
        self.append(
            e.GpuJoined(
                gpu=offer.gpu,
                incarnation=gpu.incarnation,
                kind=offer.kind,
                memory_total_bytes=offer.memory_total_bytes,
                workloads=offer.workloads,
                slots=offer.slots,
                pool=offer.pool,
            )
        )

    def _assigned(self, event: e.GpuAssigned, seq: int) -> None:
        """The weights are loaded if they are not in memory; then the GPU is ready, under its new limit."""
        gpu = self._gpus[event.gpu]
        mode: e.Mode = "finetune" if event.purpose == "batch" else "create"
        workload = e.Workload(mode, event.type, event.model)
        resident = gpu.serving is not None and gpu.serving.model == event.model
        load_ms = 0 if resident else gpu.service.load_ms
        gpu.slots, gpu.leaving = 0, event.leaving
        self.clock.at(self.clock.now_ms + load_ms, lambda: self._ready(gpu, workload, event, seq))

    def _ready(self, gpu: SimulatedGpu, workload: e.Workload, event: e.GpuAssigned, seq: int) -> None:
        there = self.state.gpus.get(event.gpu)
        if there is None or there.assigned_seq != seq:
            return  # it was told something else since
        gpu.serving, gpu.slots = workload, event.slots
        load_ms = self.clock.now_ms - self.records[seq - 1].at_ms
        self.append(
            e.GpuReady(
                gpu=event.gpu,
                incarnation=gpu.incarnation,
                model=event.model,
                load_ms=load_ms,
                assigned_seq=seq,
            )
        )
        self._pull(gpu)
        self._leave(gpu)

    def _leave(self, gpu: SimulatedGpu) -> None:
        if gpu.leaving and not gpu.bound and gpu.offer.gpu in self.state.gpus:
            self.append(e.GpuLeft(gpu=gpu.offer.gpu, incarnation=gpu.incarnation))

    def _pull(self, gpu: SimulatedGpu) -> None:
        self._broker.pull(gpu)
        if gpu.serving is not None:
            self._hand_out(gpu.serving)

    def _hand_out(self, workload: e.Workload) -> None:
        while (found := self._broker.hand_out(workload)) is not None:
            gpu, task = found
            gpu.bound[task.session] = None
            self._start(gpu, task, known=False)
            self._broker.pull(gpu)

    def _admitted(self, event: e.TurnAdmitted, seq: int) -> None:
        self._broker.put(event)
        self._hand_out(e.Workload(event.mode, event.type, event.model))

    def _continued(self, event: e.TurnContinued, seq: int) -> None:
        self._start(self._gpus[event.gpu], event, known=True)

    def _start(self, gpu: SimulatedGpu, task: e.TurnAdmitted | e.TurnContinued, *, known: bool) -> None:
        arrival = self._clients.open_turn(task.session)
        self.append(
            e.TurnStarted(
                session=task.session,
                turn=task.turn,
                attempt=task.attempt,
                gpu=gpu.offer.gpu,
                incarnation=gpu.incarnation,
            )
        )
        gpu.begin(
            Job(
                session=task.session,
                turn=task.turn,
                attempt=task.attempt,
                prompt_tokens=arrival.prompt_tokens,
                known_tokens=arrival.known_tokens if known else 0,
                output_tokens=arrival.output_tokens,
            )
        )

    def _done(self, gpu: SimulatedGpu, job: Job) -> None:
        self.append(
            e.TurnCompleted(
                session=job.session,
                turn=job.turn,
                attempt=job.attempt,
                gpu=gpu.offer.gpu,
                output="",
                usage=e.Usage(
                    prompt_tokens=job.prompt_tokens,
                    cached_tokens=job.known_tokens,
                    completion_tokens=job.output_tokens,
                ),
                queue_ms=job.queue_ms,
                first_token_ms=job.first_token_ms,
                total_ms=self.clock.now_ms - job.begun_ms,
            )
        )
        self._clients.answered(job.session)

    def _released(self, event: e.SessionReleased, seq: int) -> None:
        gpu = self._gpus[event.gpu]
        gpu.bound.pop(event.session, None)
        self._pull(gpu)
        self._leave(gpu)
