"""The scheduler: folds the log, decides, appends; everything that it knows is in the log or in a beat."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog
from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.decision import Decision
from helix_es.core.errors import Conflict, HelixError, Unavailable
from helix_es.core.placement import decide
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision, provision_gpu, provision_workload
from helix_es.jetstream.tasks import purge_continued
from helix_es.replica import Replica
from helix_es.settings_file import SettingsFile
from helix_projections.checkpoints import Checkpoints
from helix_projections.leadership import Leadership
from helix_projections.liveness import Liveness
from helix_projections.routing import Routing

log = structlog.get_logger(__name__)

BEAT_S = 0.25
SNAPSHOT_EVERY = 20_000  # facts: about a third of a second of folding
LOOK_BACK = 64  # beats before ours, so that a newcomer sees at once whether somebody acts
MOST_GONE = 1_000  # GPUs whose tasks are still to be dropped; what is left of others they refuse themselves
SETTLE_S = 2.0  # how long our own appends may take to come back before we decide again


class Scheduler:
    """One of possibly many; the active one appends what `decide` says."""

    def __init__(
        self, connection: Connection, settings: SettingsFile, *, name: str, replicas: int = 1
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._replicas = replicas
        self._log = JetStreamLog(connection)
        self._beats = Beats(connection)
        self._gone: deque[str] = deque(maxlen=MOST_GONE)
        self._left = asyncio.Event()
        self._provisioned: set[e.Workload] = set()
        self._traces: dict[str, dict[str, str]] = {}  # session -> the trace that its waiting turn belongs to
        self.replica = Replica(self._log)
        self.leadership = Leadership(name)
        files = Files(connection, new_id=lambda: "none")  # it only removes
        self._checkpoints = Checkpoints(self._log, files, lambda: self.leadership.active)
        lost_after_ms = int(3 * settings.now.sessions.heartbeat_s * 1000)  # three missed heartbeats
        self._routing = Routing(connection, replicas=replicas, acts=lambda: self.leadership.active)
        self._stuck: dict[str, tuple[str, int]] = {}
        self.liveness = Liveness(lost_after_ms=lost_after_ms, most_gap_ms=int(2 * BEAT_S * 1000))

    async def run(self) -> None:
        """Schedule until cancelled; then save a snapshot."""
        await self._provision()
        self.replica.listen(self._hear)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.replica.run())
                await self.replica.caught_up.wait()
                for gpu in self.replica.state.gpus.values():  # three heartbeats of grace for whoever we find
                    self.liveness.heard(gpu.gpu, gpu.incarnation, gpu.silence_ms)
                group.create_task(self._follow_beats())
                group.create_task(self._beat())
                group.create_task(self._decide())
                group.create_task(self._reprovision())
                group.create_task(self._purge())
                group.create_task(self._settings.watch())
                group.create_task(self._routing.run())
                group.create_task(self._checkpoints.run())
        finally:
            await self._snapshot()

    def _hear(self, record: e.Recorded) -> None:
        seat = self.replica.state.seats.get(getattr(record.event, "session", ""))
        if seat is not None:
            self._checkpoints.hear(record, batch=seat.workload.mode == "finetune")
        match record.event:
            case e.GpuJoined(gpu=gpu, incarnation=incarnation, silence_ms=silence_ms):
                self.liveness.heard(gpu, incarnation, silence_ms)
            case e.GpuLeft(gpu=gpu) | e.GpuLost(gpu=gpu):
                self.liveness.forget(gpu)
                self._gone.append(gpu)
                self._left.set()
            case e.TurnQueued(session=session) if record.headers:
                self._traces[session] = record.headers
            case e.TurnStarted(session=session) | e.SessionClosed(session=session):
                self._traces.pop(session, None)
            case e.TurnCancelled(session=session) | e.TurnFailed(session=session):
                self._traces.pop(session, None)
            case _:
                pass

    # -- the clock, and who acts

    async def _beat(self) -> None:
        while True:
            beat = e.SchedulerBeat(
                scheduler=self.leadership.name, active=self.leadership.active, seq=self.replica.state.seq
            )
            try:
                await self._beats.publish(beat)
            except HelixError as error:
                log.warning("beat_not_sent", error=str(error))
            await asyncio.sleep(BEAT_S)

    async def _follow_beats(self) -> None:
        start = max(0, await self._beats.last_seq() - LOOK_BACK)
        async for batch in self._beats.follow(start):
            for record in batch.records:
                self._take_beat(record)

    def _take_beat(self, record: e.Recorded) -> None:
        match record.event:
            case e.GpuHeartbeat() as told:
                self._heartbeat(told)
            case e.SchedulerBeat(scheduler=scheduler, active=active):
                was = self.leadership.active
                if self.leadership.beat(scheduler, active=active, at_ms=record.at_ms) != was:
                    log.info("scheduler_active" if not was else "scheduler_standby", scheduler=scheduler)
                if scheduler == self.leadership.name:
                    self.liveness.beat(record.at_ms)
                self.replica.tick(record.at_ms)
            case _:
                pass

    def _heartbeat(self, told: e.GpuHeartbeat) -> None:
        there = self.replica.state.gpus.get(told.gpu)
        if there is None or there.incarnation != told.incarnation:
            return
        self.liveness.heard(told.gpu, told.incarnation, there.silence_ms)
        stuck_ms = int(self._settings.now.sessions.stuck_s * 1000)
        if stuck_ms and told.stalled_ms >= stuck_ms:
            self._stuck[told.gpu] = (told.incarnation, told.stalled_ms)
        else:
            self._stuck.pop(told.gpu, None)

    # -- decisions

    async def _decide(self) -> None:
        while True:
            changed = self.replica.changed()
            appended = 0
            if self.leadership.active:
                try:
                    appended = await self._act()
                except HelixError as error:
                    log.error("decision_failed", code=error.code, error=str(error))
                    await asyncio.sleep(BEAT_S)
            if not appended:
                await changed.wait()

    async def _act(self) -> int:
        """Append what should happen now; return the last sequence, 0 if nothing did."""
        state = self.replica.state
        await self._set_policy()
        plan = self._losses() + decide(state, state.now_ms)
        plan = await self._with_consumers(plan)
        results = await asyncio.gather(*(self._append(decision) for decision in plan))
        last = max(results, default=0)
        if last:
            await self.replica.reached(last, SETTLE_S)
        if state.seq - self.replica.snapshot_seq > SNAPSHOT_EVERY:
            await self._snapshot()
        return last

    async def _set_policy(self) -> None:
        state = self.replica.state
        wanted = self._settings.now.policy
        if state.policy_seq and state.policy == wanted:
            return
        event = e.PolicySet(policy=wanted)
        seq = await self._append(Decision(event=event, expected_seq=state.policy_seq))
        await self.replica.reached(seq, SETTLE_S)

    def _losses(self) -> list[Decision]:
        plan = []
        for name, incarnation, silent_ms in self.liveness.silent():
            gpu = self.replica.state.gpus.get(name)
            if gpu is None or gpu.incarnation != incarnation:
                self.liveness.forget(name)
                continue
            log.warning("gpu_lost", gpu=name, silent_ms=silent_ms)
            event = e.GpuLost(gpu=gpu.gpu, incarnation=incarnation, silent_ms=silent_ms)
            plan.append(Decision(event=event, expected_seq=gpu.last_seq))
        for name, (incarnation, stalled_ms) in list(self._stuck.items()):
            gpu = self.replica.state.gpus.get(name)
            if gpu is None or gpu.incarnation != incarnation:
                del self._stuck[name]
                continue
            log.warning("gpu_stuck", gpu=name, stalled_ms=stalled_ms)
            event = e.GpuLost(gpu=gpu.gpu, incarnation=incarnation, silent_ms=stalled_ms, reason="stuck")
            plan.append(Decision(event=event, expected_seq=gpu.last_seq))
        return plan

    async def _with_consumers(self, plan: list[Decision]) -> list[Decision]:
        """Make what GPUs will pull from; an assignment for which that cannot be done waits, the rest does not."""
        ready = []
        for decision in plan:
            if isinstance(decision.event, e.GpuAssigned) and decision.event.slots:
                try:
                    await self._consumers(decision.event)
                except HelixError as error:
                    log.error("gpu_not_assigned", gpu=decision.event.gpu, code=error.code, error=str(error))
                    continue
            ready.append(decision)
        return ready

    async def _consumers(self, event: e.GpuAssigned) -> None:
        """Make what the GPU will pull from, before it is told to."""
        mode: e.Mode = "finetune" if event.purpose == "batch" else "create"
        workload = e.Workload(mode, event.type, event.model)
        if workload not in self._provisioned:
            await provision_workload(self._connection, workload)
            self._provisioned.add(workload)
        there = self.replica.state.gpus.get(event.gpu)
        await provision_gpu(self._connection, event.gpu, passing=there is not None and there.silence_ms > 0)

    async def _append(self, decision: Decision) -> int:
        """Return the sequence, or 0 if somebody else was first."""
        event = decision.event
        about = next(
            (getattr(event, name) for name in ("session", "gpu", "pool") if hasattr(event, name)), "policy"
        )
        # Two schedulers that decide the same send the same key.
        key = f"{type_of(event)}:{about}:{decision.expected_seq}"
        headers = self._traces.get(about) if isinstance(event, e.TurnAdmitted) else None
        try:
            with telemetry.span(f"append {type_of(event)}", SpanKind.PRODUCER, headers):
                carried = telemetry.carried() if headers else None
                return await self._log.append(
                    event, expected_seq=decision.expected_seq, key=key, headers=carried
                )
        except Conflict:
            log.info("decision_came_late", fact=type_of(event), about=about)
            return 0

    # -- housekeeping

    async def _purge(self) -> None:
        """Drop the tasks of GPUs that are gone; beside the decisions, since it is only tidying."""
        while True:
            await self._left.wait()
            self._left.clear()
            while self._gone and self.leadership.active:
                gpu = self._gone.popleft()
                if gpu not in self.replica.state.gpus:
                    try:
                        await purge_continued(self._connection, gpu)
                    except HelixError as error:
                        log.warning("purge_failed", gpu=gpu, error=str(error))

    async def _reprovision(self) -> None:
        """After a restart of a single server the streams in memory are gone: make them again."""
        while True:
            await self._connection.reconnected.wait()
            self._provisioned.clear()
            try:
                await self._provision()
            except HelixError as error:
                log.warning("provision_failed", error=str(error))
                await asyncio.sleep(1)

    async def _provision(self) -> None:
        """Make the streams that are missing, however long the broker elects."""
        while True:
            try:
                await provision(self._connection, replicas=self._replicas)
                return
            except Unavailable as error:
                log.warning("streams_not_reached", error=str(error))
                await asyncio.sleep(1)

    async def _snapshot(self) -> None:
        if self.replica.state.seq == self.replica.snapshot_seq or not self.leadership.active:
            return
        try:
            await self.replica.save()
        except HelixError as error:
            log.warning("snapshot_not_saved", error=str(error))
