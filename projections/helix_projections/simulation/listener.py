"""Reads a log for what a simulation needs of it."""

from __future__ import annotations

from helix_es.archive import Archive
from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.heard import Heard, Run, Said, Took
from helix_projections.simulation.meter import Meter
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.watch import Watch


async def hear(archive: Archive) -> Heard:
    """Return what `archive` tells. Raises Unreadable, Unavailable: as reading it does."""
    listener = Listener()
    async for records in archive.read():
        for record in records:
            listener.take(record)
    return listener.heard


class Listener:
    """Takes one record after the other, from the log's first on."""

    def __init__(self) -> None:
        meter = Meter()
        self.heard = Heard(meter=meter)
        self._state = Occupancy()
        self._watch = Watch(self._state, meter)
        self._open: dict[str, Said] = {}
        self._priority: dict[str, int] = {}
        self._owner: dict[str, str] = {}
        self._workload: dict[str, e.Workload] = {}
        self._kinds: dict[str, str] = {}
        self._yielding: dict[str, int] = {}

    def take(self, record: e.Recorded) -> None:
        """Take the next record. What could not happen where it stands is passed over, as the fold does."""
        if self.heard.begun_ms is None:
            self.heard.begun_ms = record.at_ms
            self.heard.meter.open(record.at_ms)
        misfits = self._state.misfits
        seat = self._state.seats.get(getattr(record.event, "session", ""))
        gpus = {seat.gpu} if seat is not None else set()
        self._state.apply(record)
        if record.event is None or self._state.misfits != misfits:
            return
        self._event(record.event, record.at_ms)
        gpus.add(getattr(record.event, "gpu", None))
        for gpu in gpus:
            if gpu is not None:
                self._watch.look(gpu, record.at_ms)

    def _event(self, event: e.AnyEvent, at_ms: int) -> None:
        heard = self.heard
        match event:
            case e.SessionCreated(session=session):
                self._owner[session], self._priority[session] = event.owner, event.priority
                self._workload[session] = e.Workload(event.mode, event.type, event.model)
            case e.TurnQueued() | e.TurnContinued():
                self._say(event, at_ms)
            case e.TurnAdmitted(session=session) if session in self._open:
                said = self._open[session]
                heard.decided_after_ms.append(max(0, at_ms - event.decided_at_ms))
                said.asked_ms = at_ms
                said.admitted_ms = at_ms if said.admitted_ms is None else said.admitted_ms
            case e.TurnStarted():
                self._start(event, at_ms)
            case e.TurnYielding(session=session):
                self._yielding[session] = at_ms
            case e.TurnProgressed() if event.checkpoint:
                self._kept(event, at_ms)
            case e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled():
                self._end(event.session, event, at_ms)
            case e.TurnReturned(session=session):
                self._stop(session, at_ms)
            case e.SessionReleased(session=session, reason=reason):
                heard.preempted += reason == "preempted"
                heard.released += reason in ("idle", "drained")
                self._stop(session, at_ms)
            case e.SessionClosed(session=session):
                heard.closed_ms[session] = at_ms
                self._end(session, None, at_ms)
            case _:
                self._about_gpus(event, at_ms)

    def _about_gpus(self, event: e.AnyEvent, at_ms: int) -> None:
        heard = self.heard
        match event:
            case e.PolicySet(policy=policy):
                heard.policies.append(policy)
            case e.GpuJoined(gpu=gpu):
                self._kinds[gpu] = event.kind
                if gpu not in heard.offers:
                    heard.offers[gpu] = _offer(event, at_ms - (heard.begun_ms or 0))
            case e.GpuReady(gpu=gpu, model=model, load_ms=load_ms):
                there = self._state.gpus.get(gpu)
                if there is not None and there.ready_ms == at_ms and load_ms > 0:
                    heard.loads.append(Took(there.kind, model, load_ms))
            case e.GpuLost() | e.GpuLeft():
                heard.losses += 1
            case _:
                pass

    def _say(self, event: e.TurnQueued | e.TurnContinued, at_ms: int) -> None:
        session = event.session
        straight = isinstance(event, e.TurnContinued)
        if isinstance(event, e.TurnQueued):
            self._workload[session] = e.Workload(event.mode, event.type, event.model)
            self._owner[session], self._priority[session] = event.owner, event.priority
        said = Said(
            session=session,
            turn=event.turn,
            owner=self._owner.get(session, session),
            priority=self._priority.get(session, 0),
            workload=self._workload.get(session, e.Workload("create", event.type, event.model)),
            said_ms=at_ms,
            straight=straight,
            asked_ms=at_ms,
            max_wait_ms=event.max_wait_ms if isinstance(event, e.TurnQueued) else None,
            admitted_ms=at_ms if straight else None,
        )
        self._open[session] = said
        self.heard.turns.append(said)

    def _start(self, event: e.TurnStarted, at_ms: int) -> None:
        said = self._open.get(event.session)
        if said is not None:
            kind = self._kinds.get(event.gpu, "")
            said.runs.append(Run(gpu=event.gpu, kind=kind, asked_ms=said.asked_ms, started_ms=at_ms))
            self._watch.begin(event.gpu, event.session, at_ms)

    def _kept(self, event: e.TurnProgressed, at_ms: int) -> None:
        """There is a checkpoint: what was computed until now is not lost."""
        said = self._open.get(event.session)
        if said is not None and said.runs:
            run = said.runs[-1]
            run.kept_ms = self._watch.got_ms(event.gpu, event.session, at_ms)
            asked_ms = self._yielding.pop(event.session, None)
            if asked_ms is not None:
                took = Took(run.kind, said.workload.model, at_ms - asked_ms)
                self.heard.checkpoints.append(took)

    def _stop(self, session: str, at_ms: int) -> None:
        """What ran of it runs no more."""
        self._yielding.pop(session, None)
        said = self._open.get(session)
        if said is not None and said.runs and said.runs[-1].ended_ms is None:
            run = said.runs[-1]
            run.ended_ms = at_ms
            run.shared_ms = self._watch.end(run.gpu, session, at_ms)
            said.asked_ms = at_ms

    def _end(
        self, session: str, event: e.TurnCompleted | e.TurnFailed | e.TurnCancelled | None, at_ms: int
    ) -> None:
        self._stop(session, at_ms)
        said = self._open.pop(session, None)
        if said is not None:
            said.ended_ms, said.end = at_ms, event
            self.heard.meter.mark(at_ms)


def _offer(event: e.GpuJoined, join_ms: int) -> Offer:
    return Offer(
        gpu=event.gpu,
        kind=event.kind,
        workloads=event.workloads,
        slots=event.slots,
        join_ms=join_ms,
        pool=event.pool,
        memory_total_bytes=event.memory_total_bytes,
    )
