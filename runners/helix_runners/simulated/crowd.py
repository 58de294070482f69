"""The life of all simulated GPUs of a process: they join, hear the log through one follower, pull, beat, leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog

from helix_es.core import events as e
from helix_es.core.errors import HelixError
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.tasks import Task
from helix_runners.simulated.doing import Tools
from helix_runners.simulated.gpu import SimulatedGpu, Start
from helix_runners.simulated.pulls import Pulls
from helix_runners.simulated.service import jittered
from helix_runners.simulated.standing import Standing
from helix_runners.simulated.turns import Turns

log = structlog.get_logger(__name__)

FILTERS = (  # those of `gpu_filters`, for every GPU: one consumer instead of a thousand
    "session.*.released.*",
    "session.*.turn.cancelling.*",
    "session.*.turn.yielding.*",
    "gpu.*.assigned",
    "gpu.*.lost",
)
SLICES = 20  # of a heartbeat's interval: GPUs beat a few at a time
LEAVE_S = 5.0


class Crowd:
    """`run` ends after `stop`, or when every GPU was told to leave."""

    def __init__(
        self, connection: Connection, names: list[e.GpuId], tools: Tools, standing: Standing
    ) -> None:
        self.gpus: Mapping[str, SimulatedGpu] = {name: SimulatedGpu(name) for name in names}
        self._connection = connection
        self._tools = tools
        self._standing = standing
        self._turns = Turns(tools)
        self._beats = Beats(connection)
        self._pulls = Pulls(connection, self._take, count=len(names))
        self._ended = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        """Turns."""
        self._spawned: set[asyncio.Task[None]] = set()
        """All that is under way beside the services."""

    def stop(self) -> None:
        """Take no more work, let running turns end, leave."""
        self._ended.set()

    async def run(self, *, heartbeat_s: float, drain_s: float) -> None:
        """Serve. `drain_s`: how long running turns may go on after `stop`."""
        for gpu in self.gpus.values():
            await self._pulls.open(gpu)
        after_seq = await self._tools.patiently(self._tools.log.last_seq)
        async with asyncio.TaskGroup() as group:
            self._group = group
            services = [
                group.create_task(work)
                for work in (
                    self._listen(after_seq),
                    self._pulls.run(),
                    self._beat(heartbeat_s),
                    self._renew(),
                )
            ]
            self._spawn(self._join_all())
            await self._ended.wait()
            await self._drain(drain_s)
            await self._leave()
            for each in [*services, *self._spawned]:
                each.cancel()

    async def _join_all(self) -> None:
        await asyncio.gather(*(self._standing.join(gpu) for gpu in self.gpus.values()))
        log.info("simulated_gpus_joined", count=len(self.gpus))

    # -- what the log says to us

    async def _listen(self, after_seq: int) -> None:
        async for batch in self._tools.log.follow(after_seq, filters=FILTERS):
            for record in batch.records:
                self._hear(record)

    def _hear(self, record: e.Recorded) -> None:
        event = record.event
        gpu = self.gpus.get(getattr(event, "gpu", ""))
        if gpu is None or gpu.gone:
            return
        match event:
            case e.SessionReleased(session=session) if event.incarnation == gpu.incarnation:
                gpu.released(session, record.seq)
                self._pulls.want(gpu)
                self._depart(gpu)
            case e.TurnCancelling(session=session, turn=turn):
                gpu.cancelling(session, turn)
            case e.TurnYielding(session=session, turn=turn, attempt=attempt):
                gpu.yielding(session, turn, attempt)
            case e.GpuAssigned() if event.incarnation == gpu.incarnation:
                gpu.fence = max(gpu.fence, record.seq)
                gpu.assigned.append(record)
                if not gpu.answering:
                    gpu.answering = True
                    self._spawn(self._answer(gpu))
            case e.GpuLost() if event.incarnation == gpu.incarnation:
                log.warning("given_up", gpu=gpu.gpu, reason=event.reason)
                gpu.give_up()
                gpu.fence = max(gpu.fence, record.seq)
                if event.reason == "stuck":  # its supervisor would start it anew, and it would load again
                    gpu.loaded = None
                if not self._ended.is_set():
                    self._spawn(self._standing.join(gpu))
            case _:
                pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        spawned = self._group.create_task(work)
        self._spawned.add(spawned)
        spawned.add_done_callback(self._spawned.discard)
        return spawned

    # -- assignments

    async def _answer(self, gpu: SimulatedGpu) -> None:
        """Put assignments in force, one after the other, and say so."""
        try:
            while gpu.assigned:
                record = gpu.assigned.popleft()
                if isinstance(record.event, e.GpuAssigned):
                    await self._obey(gpu, record.event, record.seq)
        finally:
            gpu.answering = False

    async def _obey(self, gpu: SimulatedGpu, assigned: e.GpuAssigned, seq: int) -> None:
        mode: e.Mode = "finetune" if assigned.purpose == "batch" else "create"
        workload = e.Workload(mode, assigned.type, assigned.model)
        if workload != gpu.workload:
            gpu.ready = False  # what outstanding pulls bring is not for us any more
            gpu.workload = workload
            self._pulls.restart(gpu)
        gpu.slots = 0 if assigned.leaving else assigned.slots
        if gpu.starting:  # under the old limit
            await asyncio.wait([start.settled for start in gpu.starting.values()])
        load_ms = 0
        if gpu.loaded != assigned.model:
            gpu.ready = False
            load_s = jittered(self._tools.service.load_ms / 1000, self._tools.random)
            await asyncio.sleep(load_s)
            gpu.loaded, load_ms = assigned.model, max(1, int(load_s * 1000))
        if assigned.incarnation != gpu.incarnation:
            return
        await self._standing.ready(gpu, assigned, seq, load_ms)
        if assigned.incarnation == gpu.incarnation and not self._ended.is_set():
            gpu.ready, gpu.leaving = True, assigned.leaving
            self._pulls.want(gpu)
            self._depart(gpu)

    def _depart(self, gpu: SimulatedGpu) -> None:
        """Leave for good, if that was asked for and nobody is bound any more."""
        if gpu.leaving and not gpu.gone and not gpu.taken and not gpu.assigned:
            gpu.gone = True
            self._spawn(self._go(gpu))

    async def _go(self, gpu: SimulatedGpu) -> None:
        with suppress(HelixError):  # unheard, it is lost by its silence
            await self._standing.leave(gpu)
        if all(each.gone for each in self.gpus.values()):
            self.stop()

    # -- turns

    def _take(self, gpu: SimulatedGpu, task: Task) -> None:
        event = task.event
        begun_s = asyncio.get_running_loop().time()
        if event.session in gpu.starting:
            return  # the same again, since the log is slow: given back, it would come again at once
        if isinstance(event, e.TurnContinued) and event.session not in gpu.seats:
            self._spawn(
                _quietly(task.ack())
            )  # for an earlier life of this GPU; the session was released since
        elif self._ended.is_set() or not gpu.accepts(event):
            self._spawn(_quietly(task.nak()))
        else:
            turn = self._spawn(self._do(gpu, task, gpu.begin(event.session), begun_s))
            self._running.add(turn)
            turn.add_done_callback(self._running.discard)

    async def _do(self, gpu: SimulatedGpu, task: Task, start: Start, begun_s: float) -> None:
        attempt = await self._turns.start(gpu, task, start)
        if not gpu.gone:
            self._pulls.want(gpu)
            self._depart(gpu)
        if attempt is not None:
            await self._turns.perform(gpu, attempt, begun_s)

    # -- signs of life, and the end

    async def _beat(self, heartbeat_s: float) -> None:
        """Publish everybody's heartbeat once in `heartbeat_s`, and look after their pulls at the same time."""
        gpus, now_s = list(self.gpus.values()), asyncio.get_running_loop().time
        while True:
            begun_s = now_s()
            for index in range(SLICES):
                for gpu in gpus[index::SLICES]:
                    if gpu.incarnation and not gpu.gone:
                        await _quietly(self._beats.publish(self._standing.heartbeat(gpu)))
                        self._pulls.check(gpu, now_s())
                await asyncio.sleep(max(0.0, begun_s + (index + 1) * heartbeat_s / SLICES - now_s()))

    async def _renew(self) -> None:
        while True:
            await self._connection.reconnected.wait()
            self._pulls.renew()

    async def _drain(self, drain_s: float) -> None:
        """Let running turns end; what does not in time is queued again once we have left."""
        for gpu in self.gpus.values():
            gpu.ready = False
        if self._running:
            await asyncio.wait(self._running, timeout=drain_s)
        for each in list(self._running):
            each.cancel()

    async def _leave(self) -> None:
        staying = [gpu for gpu in self.gpus.values() if gpu.incarnation and not gpu.gone]
        try:
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(_quietly(self._standing.leave(gpu)) for gpu in staying))
        except TimeoutError:
            log.warning("left_without_saying_so", count=len(staying))


async def _quietly(sending: Coroutine[Any, Any, None]) -> None:
    """Send what is made up for later if it gets lost."""
    with suppress(HelixError):
        await sending
