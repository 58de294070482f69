"""Which task a worker gets next, and how long its poll waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import structlog
from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.api.workers.attempts import RUNNING, STALE_READ_S, task_of
from helix_es.api.workers.handout import TaskView, handout
from helix_es.api.workers.memory import Memory
from helix_es.api.workers.offer import Offer
from helix_es.api.workers.parts import Parts
from helix_es.api.workers.presence import BEAT_S, SEEN_S
from helix_es.api.workers.pulls import Pulls
from helix_es.api.workers.stations import Station, Stations
from helix_es.api.workers.taskid import TaskId
from helix_es.core import events as e
from helix_es.core.errors import Rejected, Unavailable
from helix_es.core.floor import Gpu
from helix_es.core.history import Session, evolve, fold
from helix_es.core.subjects import session_filter, subject_of
from helix_es.jetstream.tasks import Task
from helix_es.turnlog import append_started

log = structlog.get_logger(__name__)

STALE_READS = 50  # a second


@dataclass
class Poll:
    """One question for work."""

    offer: Offer
    until_s: float
    """The loop's time at which it ends without a task."""
    gone: asyncio.Future[None]
    """Done when nobody waits for the answer any more."""
    holds: Container[str] | None
    """Tasks that the worker has in hand: what else runs for it, it has lost. None: nothing is known of that."""

    @property
    def left_s(self) -> float:
        return self.until_s - asyncio.get_running_loop().time()

    @property
    def over(self) -> bool:
        return self.gone.done() or self.left_s <= 0


class Dispatch:
    """Gives tasks to workers: what they lost, their own sessions' next turns, then whatever waits for anybody."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._replica = parts.replica
        self._memory = Memory(parts.replica)
        self.stations = Stations(parts.replica)

    async def next(self, poll: Poll) -> TaskView | None:
        """Return a task that runs for this worker from now on, or None. Raises Rejected, Unavailable, LogFull.

        A worker that leaves ends its polls: they must not bring it back.
        """
        station = await self.stations.of(poll.offer.worker)
        lives = station.lives
        if not await _admitted(station.lock, poll):
            return None
        try:
            pulls = await station.pulls_of(self._parts.connection, poll.offer.worker, poll.offer.workload)
            try:
                return await self._wait(station, pulls, poll, lives)
            finally:
                await pulls.rest()
        finally:
            station.lock.release()

    async def _wait(self, station: Station, pulls: Pulls, poll: Poll, lives: int) -> TaskView | None:
        while not poll.over and station.lives == lives:
            waits: set[asyncio.Future[Any]] = {poll.gone, station.changed()}
            gpu = await self._parts.presence.ready(poll.offer)
            await self._parts.presence.beat(poll.offer.worker)
            if gpu is not None:
                lost = await self._lost(station, gpu, poll)
                if lost is not None:
                    return lost
                waits |= self._pulling(station, pulls, gpu)
            await asyncio.wait(waits, timeout=min(BEAT_S, poll.left_s), return_when=asyncio.FIRST_COMPLETED)
            if poll.gone.done() or gpu is None or self._replica.state.gpus.get(gpu.gpu) is not gpu:
                continue  # what came stays where it is: it is for the worker's next life, or goes back
            came = pulls.arrived()
            if came is not None:
                view = await self._take(station, gpu, poll.offer, *came)
                if view is not None:
                    return view
        return None

    def _pulling(self, station: Station, pulls: Pulls, gpu: Gpu) -> set[asyncio.Future[Any]]:
        """Pull what the worker may have now: new sessions only while a slot is free."""
        waits: set[asyncio.Future[Any]] = {pulls.begin("own")}
        seated = station.seated(gpu, self._replica.state.seq)
        if seated < gpu.slots:
            waits.add(pulls.begin("shared", min(9, 10 * seated // gpu.slots)))
        return waits

    # -- a task that came

    async def _take(
        self, station: Station, gpu: Gpu, offer: Offer, source: str, task: Task
    ) -> TaskView | None:
        """Start the turn and return it; None if it is not this worker's to do."""
        event = task.event
        if source == "shared" and station.seated(gpu, self._replica.state.seq) >= gpu.slots:
            await task.nak()
            return None
        if isinstance(event, e.TurnContinued) and not await self._holds(gpu, event, task.log_seq):
            # It was meant for an earlier life of this worker; the session was released since.
            await task.ack()
            return None
        with telemetry.span("turn.start", SpanKind.CONSUMER, task.headers):
            session = await self._start(station, gpu, task)
            await task.ack()
            if session is None:
                log.info("task_stale", session=event.session, turn=event.turn, attempt=event.attempt)
                return None
            self._memory.keep(session)
            named = TaskId(event.session, event.turn, event.attempt, gpu.gpu, gpu.incarnation)
            return self._view(named, session, isinstance(event, e.TurnContinued), offer)

    async def _start(self, station: Station, gpu: Gpu, task: Task) -> Session | None:
        """Append `started` and return the session with it, or None if the attempt is not there any more."""
        event = task.event
        started = e.TurnStarted(
            session=event.session,
            turn=event.turn,
            attempt=event.attempt,
            gpu=gpu.gpu,
            incarnation=gpu.incarnation,
        )
        appending = append_started(self._parts.log, started, task.log_seq)
        kept = self._memory.recall(task)
        if kept is None:
            seq, session = await asyncio.gather(appending, self._read(task))
        else:
            seq, session = await appending, kept
        if seq is None:
            return None
        station.seat(event.session, seq)
        if session.last_seq >= seq:
            return session
        return evolve(session, e.Recorded(seq, 0, subject_of(started), started))

    async def _holds(self, gpu: Gpu, event: e.TurnContinued, seq: int) -> bool:
        """Whether the session sits with this life of the worker."""
        state = self._replica.state
        seat = state.seats.get(event.session)
        if seat is None or seat.last_seq not in (event.after_seq, seq):
            await self._replica.reached(seq, SEEN_S)
            seat = state.seats.get(event.session)
        return seat is not None and (seat.gpu, seat.incarnation) == (gpu.gpu, gpu.incarnation)

    async def _read(self, task: Task) -> Session:
        """Return the session up to the turn that is about to start."""
        name = task.event.session
        for _ in range(STALE_READS):
            records = await self._parts.log.history(session_filter(name), fresh=True)
            if records and records[-1].seq >= task.log_seq:
                return fold(name, records)
            await asyncio.sleep(
                STALE_READ_S
            )  # a replica of the log that lags: the task is made of what it lacks
        raise Unavailable(f"the log has not yet what made the task of {name}")

    def _view(self, task: TaskId, session: Session, continued: bool, offer: Offer) -> TaskView:
        model = self._parts.settings.models[offer.workload.model]
        return handout(task, session, model, continued=continued, lease_s=offer.lease_ms / 1000)

    # -- a task that the worker has lost

    async def _lost(self, station: Station, gpu: Gpu, poll: Poll) -> TaskView | None:
        """Return a turn that runs for this worker and that it has not in hand.

        A worker of one slot that asks has nothing in hand: its answer was lost, or it was started anew. Others say
        what they hold; of those that do not, the lease decides.
        """
        if poll.holds is None and poll.offer.slots > 1:
            return None
        state = self._replica.state
        for name in list(gpu.sessions):
            seat = state.seats.get(name)
            if seat is None or seat.phase not in RUNNING or station.beyond(name, state.seq):
                continue
            task = task_of(seat)
            if poll.holds is not None and str(task) in poll.holds:
                continue
            view = await self._again(task, poll.offer)
            if view is not None:
                return view
        return None

    async def _again(self, task: TaskId, offer: Offer) -> TaskView | None:
        try:
            looked = await self._parts.attempts.look(task)
        except Rejected:
            return None  # our fold is ahead of what the log's replica answers
        attempt = looked.attempt
        if attempt is None:  # it has ended; our fold will show it
            return None
        if attempt.cancelling:  # nobody computes it and nobody wants it
            await self._parts.endings.cancel(attempt)
            return None
        await self._parts.speech.begin_anew(task)
        return self._view(task, looked.session, looked.continued, offer)


async def _admitted(lock: asyncio.Lock, poll: Poll) -> bool:
    """Wait for the worker's earlier polls; False if this one is over before it is its turn."""
    if not lock.locked():
        await lock.acquire()
        return True
    acquiring = asyncio.ensure_future(lock.acquire())
    waits: set[asyncio.Future[Any]] = {acquiring, poll.gone}
    try:
        await asyncio.wait(waits, timeout=max(0.0, poll.left_s), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        if acquiring.done():
            lock.release()
        acquiring.cancel()
        raise
    if acquiring.done():
        return True
    acquiring.cancel()  # a lock that it was about to get goes to the next
    return False
