"""The life of a runner: join, be assigned, load, be ready, take turns while there is room, drain, leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from helix_es.core import events as e
from helix_es.core.errors import EngineError
from helix_es.core.subjects import gpu_filters
from helix_es.jetstream.client import Connection
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.tasks import Task, TaskEvent
from helix_runners.bindings import Binding, Bindings
from helix_runners.offer import Offer as Offer
from helix_runners.presence import Doing, Presence
from helix_runners.pulls import Pulls
from helix_runners.turns import Turns, patiently
from helix_runners.work import Work

log = structlog.get_logger(__name__)

BROKEN_S = 2.0  # less than three heartbeats


class Assignment(NamedTuple):
    """What the scheduler said that the GPU is for, and where that stands in the log."""

    seq: int
    fact: e.GpuAssigned

    @property
    def workload(self) -> e.Workload:
        fact = self.fact
        return e.Workload("finetune" if fact.purpose == "batch" else "create", fact.type, fact.model)

    @property
    def slots(self) -> int:
        """Sessions that may be taken from now on."""
        return 0 if self.fact.leaving else self.fact.slots


class Runner:
    """One GPU's runner. `run` ends after `stop`, when it was told to leave and nobody is bound, or with an error."""

    def __init__(
        self,
        connection: Connection,
        work: Work,
        offer: Offer,
        *,
        new_incarnation: Callable[[], str],
        on_stuck: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_stuck`: called when the engine counts as hung, before anything is waited for."""
        self._work = work
        self._offer = offer
        self._on_stuck = on_stuck
        self._log = JetStreamLog(connection)
        self._presence = Presence(connection, self._log, offer, new_incarnation)
        self._bindings = Bindings()
        self._turns = Turns(self._log, Deltas(connection), work, offer.gpu, self._bindings)
        self._ready = asyncio.Event()
        self._pulls = Pulls(connection, offer.gpu, self._bindings, self._ready, self._take)
        self._assignments: asyncio.Queue[Assignment] = asyncio.Queue()
        self._starting = asyncio.Lock()
        """Held while a session is being seated: a new limit waits for that."""
        self._loaded: e.Workload | None = None
        self._serving: e.Workload | None = None
        """What new sessions are taken of."""
        self._failed: e.Workload | None = None
        self._crashed: Exception | None = None
        self._leaving = False
        self._stuck = False
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Take no more work, let running turns end, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve. Raises EngineError or Misconfigured if a model cannot be loaded or the engine computes no more."""
        joined_seq = await self._presence.join()
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen(joined_seq))
                serving = group.create_task(self._serve(group))
                beating = group.create_task(self._heartbeat())
                await self._stopping.wait()
                serving.cancel()
                self._pulls.stop()
                await self._drain()
                for each in (listening, beating):
                    each.cancel()
        finally:
            for turn in list(self._running):
                turn.cancel()
            if not self._stuck:  # a hung engine would not let itself be closed
                await self._presence.leave(self._failed)
                await self._work.close()

    async def _drain(self) -> None:
        """Let running turns end; what does not in time is queued again once we have left."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._offer.drain_s)
        for each in list(self._running):
            each.cancel()

    async def _heartbeat(self) -> None:
        while True:
            if self._work.broken is not None:
                if self._running:  # let them say so in the log: whichever breaks every engine must be counted
                    await asyncio.wait(self._running, timeout=BROKEN_S)
                raise EngineError(f"leaving, since the engine has stopped: {self._work.broken}")
            if self._crashed is not None:
                raise EngineError(
                    f"leaving, since a turn could not be ended: {self._crashed}"
                ) from self._crashed
            await self._presence.beat(
                Doing(
                    model=None if self._loaded is None else self._loaded.model,
                    slots_used=len(self._bindings),
                    stalled_ms=self._turns.stall.ms if self._offer.stalls else 0,
                    detail=self._work.detail(),
                )
            )
            await asyncio.sleep(self._offer.heartbeat_s)

    # -- what the log says to us

    async def _listen(self, after_seq: int) -> None:
        async for batch in self._log.follow(after_seq, filters=gpu_filters(self._offer.gpu)):
            for record in batch.records:
                await self._hear(record)

    async def _hear(self, record: e.Recorded) -> None:
        live = self._presence.incarnation
        match record.event:
            case e.SessionReleased(incarnation=incarnation) as released if incarnation == live:
                await self._release(record.seq, released)
            case e.TurnCancelling(session=session, turn=turn):
                binding = self._bindings.get(session)
                if binding is not None and binding.turn == turn:
                    await self._stop_turn(binding)
            case e.TurnYielding(session=session, turn=turn):
                binding = self._bindings.get(session)
                if binding is not None and binding.turn == turn and binding.seated_seq < record.seq:
                    await self._work.give_way(session)
            case e.GpuAssigned(incarnation=incarnation) as assigned if incarnation == live:
                self._assignments.put_nowait(Assignment(record.seq, assigned))
            case e.GpuLost(incarnation=incarnation) as lost if incarnation == live:
                await self._given_up(lost)
            case _:
                pass

    async def _release(self, seq: int, released: e.SessionReleased) -> None:
        seated = self._bindings.get(released.session)
        if seated is not None and seated.seated_seq < seq:  # else it was seated again since
            self._bindings.release(released.session)
            await self._stop_turn(seated)
        if released.reason == "closed":
            await self._work.forget(released.session)
        self._leave_if_done()

    async def _stop_turn(self, binding: Binding) -> None:
        binding.cancelled = True  # also for a turn that is about to begin
        await self._work.cancel(binding.session)

    async def _given_up(self, lost: e.GpuLost) -> None:
        """Our sessions are others' now: join anew, unless our silence was not the reason."""
        log.warning("given_up", gpu=self._offer.gpu, reason=lost.reason)
        if lost.reason == "stuck":
            self._stuck = True
            self._on_stuck()
            raise EngineError("leaving, since no turn moved for too long: the engine hangs", code="stuck")
        async with self._starting:  # who is being seated belongs to the life that is over
            self._ready.clear()
            self._serving = None
            self._leaving = False
            for binding in self._bindings.clear():
                await self._stop_turn(binding)
            await self._presence.join()

    # -- what we are for

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        """Obey one assignment after the other."""
        while True:
            given = await self._assignments.get()
            if not self._is_over(given):
                await self._obey(given, group)

    def _is_over(self, given: Assignment) -> bool:
        """Whether it was said to an earlier life of this GPU."""
        return given.fact.incarnation != self._presence.incarnation

    async def _obey(self, given: Assignment, group: asyncio.TaskGroup) -> None:
        load_ms = 0
        if given.slots and given.workload != self._loaded:  # a GPU that only drains needs no weights
            load_ms = await self._load(given.workload)
        async with self._starting:  # whoever was seated within the old limit is in the log
            if self._is_over(given):
                return
            self._bindings.offer(given.slots)
            self._serving = given.workload
        await patiently(lambda: self._presence.ready(given.fact, given.seq, load_ms))
        if self._is_over(given):
            return
        log.info("ready", model=given.fact.model, slots=given.slots, load_ms=load_ms)
        self._ready.set()
        self._pulls.follow(given.workload, group)
        self._leaving = given.fact.leaving
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._leaving and not len(self._bindings):
            log.info("leaving", gpu=self._offer.gpu)
            self.stop()

    async def _load(self, workload: e.Workload) -> int:
        """Return the milliseconds that it took, at least 1."""
        if workload not in self._offer.workloads:
            wanted = f"{workload.mode}/{workload.type}/{workload.model}"
            raise EngineError(f"the scheduler assigned {wanted}, which this runner does not offer")
        self._pulls.retire()
        async with self._starting:
            self._serving = None
        self._loaded = None
        begun = time.monotonic()
        try:
            await self._work.load(workload, self._offer.models[workload.model])
        except Exception:
            self._failed = workload
            raise
        self._loaded = workload
        return max(1, int((time.monotonic() - begun) * 1000))

    # -- turns

    async def _take(self, task: Task) -> None:
        """Do a task, or give it back: it may come of a pull that was sent when there was room."""
        if self._stopping.is_set() or not self._ready.is_set():
            await task.nak()
            return
        if isinstance(task.event, e.TurnContinued):
            binding = await self._start(task)
        else:
            async with self._starting:
                if not self._may_seat(task.event):
                    await task.nak()
                    return
                binding = await self._start(task)
        if binding is None:
            return
        turn = asyncio.create_task(self._perform(task, binding))
        self._running.add(turn)
        turn.add_done_callback(self._running.discard)

    def _may_seat(self, event: TaskEvent) -> bool:
        if not isinstance(event, e.TurnAdmitted) or not self._ready.is_set():
            return False
        wanted = e.Workload(event.mode, event.type, event.model)
        return wanted == self._serving and self._bindings.fits(event.session)

    async def _start(self, task: Task) -> Binding | None:
        incarnation = self._presence.incarnation
        return await patiently(lambda: self._turns.start(task, incarnation))

    async def _perform(self, task: Task, binding: Binding) -> None:
        try:
            async with binding.busy:
                await self._turns.perform(task, binding)
        except (
            Exception
        ) as error:  # its end is not in the log, and never will be: whoever takes over must end it
            log.exception("turn_not_ended", session=binding.session)
            self._crashed = error
