"""A runner on a real server with work that only pretends; the scheduler's facts are appended by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from helix_es.core import events as e
from helix_es.core.catalogue import BUILTIN, Model
from helix_es.core.subjects import fence_of, shared_consumer, subject_of
from helix_es.jetstream.client import Connection
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision_gpu, provision_workload
from helix_es.jetstream.tasks import TaskPuller
from helix_runners.devices import cpu
from helix_runners.loop import Offer, Runner
from helix_runners.work import Job, Outcome, Output

GPU = e.GpuId("box-0")
CHAT = e.Workload("create", "text", "smollm2")
OTHER = e.Workload("create", "text", "mistral")
PICTURES = e.Workload("create", "image", "scenes")
BATCH = e.Workload("finetune", "text", "smollm2")
PATIENCE_S = 15.0

Perform = Callable[[Job, Output], Awaitable[Outcome]]


async def echo(job: Job, output: Output) -> Outcome:
    await output.say(job.turn.prompt)
    return Outcome(output=job.turn.prompt)


class Pretended:
    """`Work` that notes what is asked of it; `perform` is whatever the test says."""

    def __init__(self, perform: Perform = echo) -> None:
        self.do = perform
        self.loads: list[e.Workload] = []
        self.cancelled: list[str] = []
        self.gave_way: list[str] = []
        self.forgotten: list[str] = []
        self.performed: list[tuple[str, int, int]] = []
        """Session, turn and attempt."""
        self.load_error: Exception | None = None
        self.closed = False
        self.broken: str | None = None

    async def load(self, workload: e.Workload, model: Model) -> None:
        if self.load_error is not None:
            raise self.load_error
        self.loads.append(workload)

    async def perform(self, job: Job, output: Output) -> Outcome:
        self.performed.append((job.session, job.turn.turn, job.turn.attempt))
        return await self.do(job, output)

    async def cancel(self, session: str) -> None:
        self.cancelled.append(session)

    async def give_way(self, session: str) -> None:
        self.gave_way.append(session)

    async def forget(self, session: str) -> None:
        self.forgotten.append(session)

    def detail(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        self.closed = True


def offer(*workloads: e.Workload, **changes: Any) -> Offer:
    offered = list(workloads or (CHAT, OTHER, PICTURES, BATCH))
    models = {each.model: BUILTIN[each.model] for each in offered}
    about: dict[str, Any] = {"slots": dict.fromkeys(models, 2), "heartbeat_s": 0.1, "drain_s": 1.0}
    return Offer(gpu=GPU, device=cpu(), workloads=offered, models=models, **{**about, **changes})


class Floor:
    """The other side: what the scheduler and the API append, and what the log then holds."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.log = JetStreamLog(connection)
        self.patience_s = PATIENCE_S
        self._keys = itertools.count(1)

    async def say(self, event: e.AnyEvent) -> int:
        """Append `event` behind whatever was said before."""
        said = await self.log.history(fence_of(subject_of(event)))
        key = f"test{next(self._keys)}"
        return await self.log.append(event, expected_seq=said[-1].seq if said else 0, key=key)

    async def facts(self, subject_filter: str) -> list[e.Recorded]:
        return await self.log.history(subject_filter)

    async def until(self, subject_filter: str, good: Callable[[Any], bool], count: int = 1) -> e.Recorded:
        """Wait for the `count`-th fact under the filter that is good."""
        async with asyncio.timeout(self.patience_s):
            async for batch in self.log.follow(0, filters=[subject_filter]):
                for record in batch.records:
                    count -= record.event is not None and good(record.event)
                    if not count:
                        return record
        raise AssertionError("the log ended")

    # -- the GPU

    async def joined(self, life: int = 1) -> str:
        """Wait for the GPU's life of that number; return its incarnation."""
        found = await self.until(f"gpu.{GPU}.joined", lambda fact: True, life)
        assert isinstance(found.event, e.GpuJoined)
        return found.event.incarnation

    async def assign(self, workload: e.Workload, slots: int, incarnation: str = "i1", **more: Any) -> int:
        """Assign the GPU, with its consumers, as the scheduler does; return the sequence."""
        await provision_workload(self.connection, workload)
        await provision_gpu(self.connection, GPU)
        return await self.say(
            e.GpuAssigned(
                gpu=GPU,
                incarnation=incarnation,
                model=workload.model,
                type=workload.type,
                purpose="batch" if workload.mode == "finetune" else "chat",
                slots=slots,
                decided_seq=0,
                decided_at_ms=0,
                **more,
            )
        )

    async def ready(self, assigned_seq: int) -> e.Recorded:
        return await self.until(f"gpu.{GPU}.ready", lambda fact: fact.assigned_seq == assigned_seq)

    async def put(self, workload: e.Workload, slots: int, **more: Any) -> e.Recorded:
        """Assign, and wait until it is in force."""
        return await self.ready(await self.assign(workload, slots, **more))

    async def lose(self, incarnation: str, reason: e.LossReason = "silent") -> None:
        await self.say(e.GpuLost(gpu=GPU, incarnation=incarnation, silent_ms=1, reason=reason))

    # -- sessions

    async def open(self, session: str, workload: e.Workload = CHAT, **params: Any) -> None:
        """Bring in somebody and admit the turn."""
        mode, kind, model = workload.mode, workload.type, workload.model
        sid = e.SessionId(session)
        await self.say(
            e.SessionCreated(session=sid, owner="ann", mode=mode, type=kind, model=model, params=params)
        )
        await self.say(
            e.TurnQueued(session=sid, turn=1, mode=mode, type=kind, model=model, owner="ann", prompt="Hello")
        )
        await self.admit(session, workload)

    async def admit(self, session: str, workload: e.Workload = CHAT, attempt: int = 1) -> None:
        await self.say(
            e.TurnAdmitted(
                session=e.SessionId(session),
                turn=1,
                attempt=attempt,
                mode=workload.mode,
                type=workload.type,
                model=workload.model,
                waited_ms=0,
                estimated_ms=None,
                reason="test",
                decided_seq=0,
                decided_at_ms=0,
            )
        )

    async def go_on(self, session: str, turn: int, workload: e.Workload = CHAT) -> None:
        """Ask a session that is bound for more."""
        said = await self.log.history(f"session.{session}.>")
        await self.say(
            e.TurnContinued(
                session=e.SessionId(session),
                turn=turn,
                type=workload.type,
                model=workload.model,
                gpu=GPU,
                after_seq=said[-1].seq,
                prompt="More",
            )
        )

    async def release(self, session: str, reason: e.ReleaseReason = "idle", incarnation: str = "i1") -> int:
        return await self.say(
            e.SessionReleased(
                session=e.SessionId(session),
                gpu=GPU,
                incarnation=incarnation,
                reason=reason,
                decided_seq=0,
                decided_at_ms=0,
            )
        )

    async def turn(self, session: str, what: type[e.Event], count: int = 1) -> e.Recorded:
        """Wait for a fact of one kind about a session."""
        return await self.until(f"session.{session}.>", lambda fact: isinstance(fact, what), count)

    async def answered(self, session: str, turn: int = 1) -> e.Recorded:
        return await self.until(
            f"session.{session}.>", lambda fact: isinstance(fact, e.TurnCompleted) and fact.turn == turn
        )

    async def another_gets(self, workload: e.Workload = CHAT) -> str:
        """Pull as another GPU does that is nearly full; return whose task came, which it then has done."""
        puller = TaskPuller(self.connection, shared_consumer(workload), prioritized=True)
        await puller.open()
        try:
            task = await puller.pull(load=9, expires_s=4.0)  # less than what a task that is forgotten waits
            assert task is not None, "no task came"
            await task.ack()
            return task.event.session
        finally:
            await puller.close()


@asynccontextmanager
async def running(
    floor: Floor, work: Any, offered: Offer | None = None, **more: Any
) -> AsyncIterator[tuple[Runner, asyncio.Task[None]]]:
    """A runner that has joined; ended at the end, if it has not ended by itself."""
    lives = (f"i{number}" for number in itertools.count(1))
    runner = Runner(floor.connection, work, offered or offer(), new_incarnation=lambda: next(lives), **more)
    serving = asyncio.create_task(runner.run())
    try:
        await floor.joined()
        yield runner, serving
    finally:
        runner.stop()
        await asyncio.wait([serving], timeout=PATIENCE_S)
        assert serving.done(), "the runner did not stop"
        if not serving.cancelled():
            serving.exception()  # looked at: the test did so too, or has failed already
