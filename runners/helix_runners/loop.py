"""The life of a runner: join, be assigned, load, be ready, pull turns while there is room, leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from helix_es.core import events as e
from helix_es.core.catalogue import Model
from helix_es.core.codec import type_of
from helix_es.core.errors import Conflict, EngineError, HelixError, Unavailable
from helix_es.core.subjects import continue_consumer, gpu_filters, shared_consumer
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.tasks import Task, TaskPuller
from helix_runners.bindings import Binding, Bindings
from helix_runners.devices import Device, facts
from helix_runners.turns import Turns, patiently
from helix_runners.work import Work

log = structlog.get_logger(__name__)

ATTEMPTS = 20  # at a fact about our own GPU, which only the scheduler writes about too
RETRY_S = 0.5


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner brings."""

    gpu: e.GpuId
    device: Device
    models: dict[str, Model]
    """The models it may be assigned, by slug; the first is preferred."""
    mode: e.Mode = "create"
    slots: dict[str, int]
    heartbeat_s: float = 1.0
    drain_s: float = 10.0
    """How long running turns may go on after it was told to stop."""


class Runner:
    """One GPU's runner. `run` ends after `stop`, or with an error if the model cannot be loaded."""

    def __init__(
        self, connection: Connection, work: Work, offer: Offer, *, new_incarnation: Callable[[], str]
    ) -> None:
        self._connection = connection
        self._work = work
        self._offer = offer
        self._new_incarnation = new_incarnation
        self._log = JetStreamLog(connection)
        self._beats = Beats(connection)
        self._turns = Turns(self._log, Deltas(connection), work, offer.gpu)
        self._bindings = Bindings()
        self._incarnation = ""
        self._loaded: str | None = None
        self._assignment: asyncio.Queue[e.GpuAssigned] = asyncio.Queue()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._pulling: list[asyncio.Task[None]] = []
        self._load_ms = 0

    def stop(self) -> None:
        """Take no more work, let running turns end, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`."""
        joined_seq = await self._join()
        try:
            async with asyncio.TaskGroup() as group:
                serving = [
                    group.create_task(self._listen(joined_seq)),
                    group.create_task(self._serve(group)),
                    group.create_task(self._heartbeat()),
                ]
                await self._stopping.wait()
                for each in [serving[1], *self._pulling]:
                    each.cancel()
                await self._drain()
                for each in serving:
                    each.cancel()
        finally:
            await self._leave()

    # -- facts about this GPU

    async def _join(self) -> int:
        self._ready.clear()
        self._incarnation = self._new_incarnation()
        offer = self._offer
        joined = e.GpuJoined(
            gpu=offer.gpu,
            incarnation=self._incarnation,
            kind=offer.device.kind,
            memory_total_bytes=offer.device.memory_total_bytes,
            workloads=[e.Workload(offer.mode, model.type, slug) for slug, model in offer.models.items()],
            slots=offer.slots,
        )
        seq = await self._append(joined)
        log.info("joined", gpu=offer.gpu, incarnation=self._incarnation)
        return seq

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self._append(e.GpuLeft(gpu=self._offer.gpu, incarnation=self._incarnation))
        except (HelixError, TimeoutError) as error:
            log.warning("left_without_saying_so", error=str(error))
        await self._work.close()

    async def _append(self, event: e.GpuJoined | e.GpuReady | e.GpuLeft) -> int:
        """Append a fact about our GPU behind whatever was said of it last."""
        key = f"{type_of(event)}:{event.gpu}:{event.incarnation}"
        for _ in range(ATTEMPTS):
            said = await self._log.history(f"gpu.{event.gpu}.>")
            try:
                expected = said[-1].seq if said else 0
                return await self._log.append(event, expected_seq=expected, key=f"{key}:{expected}")
            except Conflict:
                continue
        raise Unavailable(f"somebody keeps writing about {event.gpu}: is another runner using its name?")

    async def _heartbeat(self) -> None:
        while True:
            if self._work.broken is not None:
                raise EngineError(f"leaving, since the engine has stopped: {self._work.broken}")
            measured = await asyncio.to_thread(facts, self._offer.device)
            beat = e.GpuHeartbeat(
                gpu=self._offer.gpu,
                incarnation=self._incarnation,
                memory_total_bytes=measured.memory_total_bytes,
                memory_used_bytes=measured.memory_used_bytes,
                utilisation=measured.utilisation,
                temperature_c=measured.temperature_c,
                power_w=measured.power_w,
                model=self._loaded,
                slots_used=len(self._bindings),
                detail=self._work.detail(),
            )
            try:
                await self._beats.publish(beat)
            except HelixError as error:
                log.warning("heartbeat_not_sent", error=str(error))
            await asyncio.sleep(self._offer.heartbeat_s)

    # -- what the log says to us

    async def _listen(self, after_seq: int) -> None:
        async for batch in self._log.follow(after_seq, filters=gpu_filters(self._offer.gpu)):
            for record in batch.records:
                await self._hear(record)

    async def _hear(self, record: e.Recorded) -> None:
        match record.event:
            case e.SessionReleased(session=session, incarnation=incarnation) if (
                incarnation == self._incarnation
            ):
                seated = self._bindings.get(session)
                if seated is not None and seated.seated_seq < record.seq:  # else it was seated again since
                    self._bindings.release(session)
                    await self._stop_turn(seated)
                if record.event.reason == "closed":
                    await self._work.forget(session)
            case e.TurnCancelling(session=session, turn=turn):
                binding = self._bindings.get(session)
                if binding is not None and binding.turn == turn:
                    await self._stop_turn(binding)
            case e.GpuAssigned(incarnation=incarnation) as assigned if incarnation == self._incarnation:
                self._assignment.put_nowait(assigned)
            case e.GpuLost(incarnation=incarnation) if incarnation == self._incarnation:
                log.warning("given_up", gpu=self._offer.gpu)
                for binding in self._bindings.clear():
                    await self._stop_turn(binding)
                await self._join()
            case _:
                pass

    async def _stop_turn(self, binding: Binding) -> None:
        binding.cancelled = True  # also for a turn that is about to begin
        await self._work.cancel(binding.session)

    # -- work

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        """Follow assignments, and pull from the first one on."""
        while True:
            assigned = await self._assignment.get()
            if assigned.incarnation != self._incarnation:
                continue
            if self._loaded != assigned.model:
                await self._load(assigned)
            self._bindings.offer(assigned.slots)
            ready = e.GpuReady(
                gpu=assigned.gpu,
                incarnation=assigned.incarnation,
                model=assigned.model,
                load_ms=self._load_ms,
            )
            await self._append(ready)
            self._ready.set()
            log.info("ready", model=assigned.model, slots=assigned.slots, load_ms=self._load_ms)
            if not self._pulling:
                workload = e.Workload(self._offer.mode, assigned.type, assigned.model)
                shared = TaskPuller(self._connection, shared_consumer(workload), prioritized=True)
                own = TaskPuller(self._connection, continue_consumer(assigned.gpu), prioritized=False)
                self._pulling = [
                    group.create_task(self._pull(shared, True)),
                    group.create_task(self._pull(own, False)),
                ]

    async def _load(self, assigned: e.GpuAssigned) -> None:
        begun = time.monotonic()
        await self._work.load(assigned.model, self._offer.models[assigned.model])
        self._loaded = assigned.model
        self._load_ms = int((time.monotonic() - begun) * 1000)

    async def _pull(self, puller: TaskPuller, shared: bool) -> None:
        """Pull for ever: shared work only while a slot is free, work of our own sessions always."""
        await puller.open()
        try:
            while not self._stopping.is_set():
                await self._ready.wait()
                if shared:
                    await self._bindings.room()
                try:
                    task = await puller.pull(load=self._bindings.load)
                    if task is not None:
                        await self._take(task)
                except HelixError as error:
                    log.warning("pull_failed", error=str(error))
                    await asyncio.sleep(RETRY_S)
        finally:
            await puller.close()

    async def _take(self, task: Task) -> None:
        if self._stopping.is_set() or not self._ready.is_set():
            await task.nak()
            return
        binding = await patiently(lambda: self._turns.start(task, self._bindings, self._incarnation))
        if binding is None:
            return
        turn = asyncio.create_task(self._perform(task, binding))
        self._running.add(turn)
        turn.add_done_callback(self._running.discard)

    async def _perform(self, task: Task, binding: Binding) -> None:
        async with binding.busy:
            await self._turns.perform(task, binding)

    async def _drain(self) -> None:
        """Let running turns end; what does not in time is queued again once we have left."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._offer.drain_s)
        for each in list(self._running):
            each.cancel()
