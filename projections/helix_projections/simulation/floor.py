"""The simulated floor: its GPUs join, load what they are assigned, take tasks, and say what came of them."""

from __future__ import annotations

from collections.abc import Callable

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.broker import Broker
from helix_projections.simulation.clients import Clients, Spoken
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.gpu import Job, SimulatedGpu
from helix_projections.simulation.meter import Meter
from helix_projections.simulation.scenario import Scenario

Append = Callable[[e.AnyEvent], int]


class Floor:
    """All GPUs. What it is told of are facts that were just appended."""

    def __init__(
        self, scenario: Scenario, state: Occupancy, clock: Clock, append: Append, clients: Clients
    ) -> None:
        self.meter = Meter()
        self.preempted = self.released = 0
        self._scenario = scenario
        self._state = state
        self._clock = clock
        self._append = append
        self._clients = clients
        self._broker = Broker()
        self._offered: dict[str, int] = {}
        """GPU -> slots that it is counted with."""
        self._gpus = {
            offer.gpu: SimulatedGpu(offer, clock, self.meter.busy, self._done) for offer in scenario.offers
        }

    def open(self) -> None:
        """Let every GPU join when it is to."""
        for gpu in self._gpus.values():
            self._clock.at(gpu.offer.join_ms, lambda gpu=gpu: self._join(gpu))  # type: ignore[misc]

    # -- what it is for

    def _join(self, gpu: SimulatedGpu) -> None:
        offer = gpu.offer
        self.meter.present.change(self._clock.now_ms, +1)
        self._append(
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

    def assigned(self, event: e.GpuAssigned, seq: int) -> None:
        """The weights are loaded if they are not in memory; then the GPU is ready, under its new limit."""
        gpu = self._gpus[event.gpu]
        mode: e.Mode = "finetune" if event.purpose == "batch" else "create"
        workload = e.Workload(mode, event.type, event.model)
        resident = gpu.serving is not None and gpu.serving.model == event.model
        service = self._scenario.service_of(gpu.offer.kind, event.model)
        load_ms = 0 if resident else service.load_ms
        gpu.slots, gpu.service = 0, service
        self._count(gpu)
        asked_ms = self._clock.now_ms

        def ready() -> None:
            if gpu.starting:  # under the old limit
                gpu.settled.append(ready)
                return
            there = self._state.gpus.get(event.gpu)
            if there is not None and there.assigned_seq == seq:  # else it was told something else since
                self._ready(gpu, workload, event, load_ms)

        self._clock.at(asked_ms + load_ms, ready)

    def _ready(self, gpu: SimulatedGpu, workload: e.Workload, event: e.GpuAssigned, load_ms: int) -> None:
        gpu.serving, gpu.slots = workload, event.slots
        self._count(gpu)
        seq = self._state.gpus[event.gpu].assigned_seq
        self._append(
            e.GpuReady(
                gpu=event.gpu,
                incarnation=gpu.incarnation,
                model=event.model,
                load_ms=load_ms,
                assigned_seq=seq,
            )
        )
        self._pull(gpu)

    def _count(self, gpu: SimulatedGpu) -> None:
        """Count what it offers to chats; what it holds beyond that is offered as well."""
        chats = gpu.serving is not None and gpu.serving.mode == "create"
        offered, before = max(gpu.slots, len(gpu.bound)) if chats else 0, self._offered.get(gpu.offer.gpu, 0)
        if offered != before:
            self._offered[gpu.offer.gpu] = offered
            self.meter.offered.change(self._clock.now_ms, offered - before)

    # -- tasks

    def _pull(self, gpu: SimulatedGpu) -> None:
        self._broker.pull(gpu, self._clock.now_ms)
        if gpu.serving is not None:
            self._hand_out(gpu.serving)

    def _hand_out(self, workload: e.Workload) -> None:
        while (found := self._broker.hand_out(workload, self._clock.now_ms)) is not None:
            gpu, task = found
            gpu.bound[task.session] = None
            if workload.mode == "create":
                self.meter.held.change(self._clock.now_ms, +1)
            self._start(gpu, task, known=False)
            self._broker.pull(gpu, self._clock.now_ms)

    def admitted(self, event: e.TurnAdmitted, seq: int) -> None:
        """The fact is the task."""
        spoken = self._clients.spoken(event.session)
        if spoken.admitted_ms is None:
            spoken.admitted_ms = self._clock.now_ms
        self._broker.put(event)
        self._hand_out(e.Workload(event.mode, event.type, event.model))

    def continued(self, event: e.TurnContinued, seq: int) -> None:
        """A task for the GPU that holds the session."""
        self._start(self._gpus[event.gpu], event, known=True)

    def _start(self, gpu: SimulatedGpu, task: e.TurnAdmitted | e.TurnContinued, *, known: bool) -> None:
        if self._scenario.start_ms:
            due_ms = self._clock.now_ms + self._scenario.start_ms
            gpu.starting += 1
            self._clock.at(due_ms, lambda: self._settle(gpu, task, known=known))
        else:
            self._started(gpu, task, known=known)

    def _settle(self, gpu: SimulatedGpu, task: e.TurnAdmitted | e.TurnContinued, *, known: bool) -> None:
        """A start that was on its way is in the log; what waited for that goes on."""
        gpu.starting -= 1
        self._started(gpu, task, known=known)
        if not gpu.starting:
            settled, gpu.settled = gpu.settled, []
            for call in settled:
                call()

    def _started(self, gpu: SimulatedGpu, task: e.TurnAdmitted | e.TurnContinued, *, known: bool) -> None:
        spoken = self._clients.spoken(task.session)
        spoken.attempts += 1
        if spoken.first_started_ms is None:
            spoken.first_started_ms = self._clock.now_ms
        self._append(
            e.TurnStarted(
                session=task.session,
                turn=task.turn,
                attempt=task.attempt,
                gpu=gpu.offer.gpu,
                incarnation=gpu.incarnation,
            )
        )
        gpu.begin(_job(task, spoken, known=known))

    def _done(self, gpu: SimulatedGpu, job: Job) -> None:
        now_ms, session = self._clock.now_ms, job.session
        arrival = self._clients.spoken(session).arrival
        first_token_ms = now_ms - job.begun_ms if arrival.work_ms else job.first_token_ms
        self._append(
            e.TurnCompleted(
                session=session,
                turn=job.turn,
                attempt=job.attempt,
                gpu=gpu.offer.gpu,
                output="",
                usage=e.Usage(
                    prompt_tokens=job.prompt_tokens,
                    cached_tokens=job.known_tokens,
                    completion_tokens=0 if arrival.work_ms else job.output_tokens,
                ),
                queue_ms=job.queue_ms,
                first_token_ms=first_token_ms,
                total_ms=now_ms - job.begun_ms,
            )
        )
        self.meter.mark(now_ms)
        self._clients.answered(session, first_token_ms=job.begun_ms + first_token_ms)

    # -- slots are given back

    def yielding(self, event: e.TurnYielding, seq: int) -> None:
        """A fine-tune makes a checkpoint: what it had done by then is not lost."""
        gpu = self._gpus[event.gpu]

        def checkpoint() -> None:
            if gpu.runs(event.session, event.attempt):
                self._clients.spoken(event.session).left_ms = gpu.left_ms(event.session)
                about = {"session": event.session, "turn": event.turn, "attempt": event.attempt}
                self._append(
                    e.TurnProgressed(**about, gpu=event.gpu, step=0, steps=0, checkpoint=["simulated"])  # type: ignore[arg-type]
                )

        self._clock.at(self._clock.now_ms + gpu.service.checkpoint_ms, checkpoint)

    def released_by(self, event: e.SessionReleased, seq: int) -> None:
        """The slot is free; what still runs of the session ends."""
        gpu = self._gpus[event.gpu]
        self.preempted += event.reason == "preempted"
        self.released += event.reason in ("idle", "drained")
        gpu.drop(event.session)
        self._broker.pull(gpu, self._clock.now_ms)  # what is out says what it held until now
        if event.session in gpu.bound:
            del gpu.bound[event.session]
            if gpu.serving is not None and gpu.serving.mode == "create":
                self.meter.held.change(self._clock.now_ms, -1)
        if gpu.slots == 0:
            self._count(gpu)
        self._pull(gpu)


def _job(task: e.TurnAdmitted | e.TurnContinued, spoken: Spoken, *, known: bool) -> Job:
    arrival = spoken.arrival
    return Job(
        session=task.session,
        turn=task.turn,
        attempt=task.attempt,
        prompt_tokens=arrival.prompt_tokens,
        known_tokens=arrival.known_tokens if known else 0,
        output_tokens=arrival.output_tokens,
        work_ms=max(1.0, spoken.left_ms) if arrival.work_ms else 0.0,
    )
