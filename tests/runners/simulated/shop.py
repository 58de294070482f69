"""A shop around simulated GPUs for tests: a scheduler that does what the test says, and an API that only appends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from helix_es.core import events as e
from helix_es.core.errors import Conflict
from helix_es.core.history import Session, fold
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision_gpu, provision_workload
from helix_es.settings import Settings
from helix_runners.simulated.crowd import Crowd
from helix_runners.simulated.main import SimulatedOptions, card_of, make_crowd, names_of
from helix_runners.simulated.service import Service
from tests.conftest import NatsServer

PATIENCE_S = 20.0
QUICK = Service(first_token_ms=20, tokens_per_s=400.0, load_ms=10, step_ms=10, checkpoint_every=5)
SLOW = Service(first_token_ms=20, tokens_per_s=20.0, load_ms=10, step_ms=50, checkpoint_every=1000)

Fact = TypeVar("Fact", bound=e.Event)


def options(*, service: Service = QUICK, **given: Any) -> SimulatedOptions:
    """Return the options of a few A100 that offer Mistral, unless something else is said."""
    usual: dict[str, Any] = {"models": ("mistral",), "kind": "a100-80", "count": 2, "gpu_prefix": "sim"}
    return SimulatedOptions(**{**usual, **given}, service=service, nats={})


@asynccontextmanager
async def running(
    server: NatsServer, made: SimulatedOptions
) -> AsyncIterator[tuple[Crowd, asyncio.Task[None]]]:
    """Run simulated GPUs while the context lasts; yield them and the task that ends when they have left."""
    connection = await connect(NatsSettings(url=server.url, name="simulated"))
    crowd = make_crowd(connection, names_of(made), card_of(Settings(), made), made)
    serving = asyncio.create_task(crowd.run(heartbeat_s=0.2, drain_s=made.drain_s))
    try:
        yield crowd, serving
    finally:
        crowd.stop()
        await asyncio.wait_for(serving, PATIENCE_S)
        await connection.close()


class Shop:
    """Appends what the scheduler and the API would, and waits for what the runner appends."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.log = JetStreamLog(connection)

    async def fact(self, kind: type[Fact], good: Callable[[Fact], bool] = lambda _: True) -> tuple[int, Fact]:
        """Return the first such fact of the log and its sequence; wait for it."""
        async with asyncio.timeout(PATIENCE_S):
            async for batch in self.log.follow(0):
                for record in batch.records:
                    if isinstance(record.event, kind) and good(record.event):
                        return record.seq, record.event
        raise AssertionError("unreachable")

    async def assign(self, gpu: str, slots: int, workload: str = "create/text/mistral", **more: Any) -> int:
        """Assign a GPU, once it has joined; return the sequence."""
        mode, kind, model = workload.split("/")
        joined_seq, _ = await self.fact(e.GpuJoined, lambda x: x.gpu == gpu)
        said = await self.log.history(f"gpu.{gpu}.>", after_seq=joined_seq - 1)
        life = [each.event for each in said if isinstance(each.event, e.GpuJoined)][-1]
        await provision_workload(self.connection, e.Workload(mode, kind, model))  # type: ignore[arg-type]
        await provision_gpu(self.connection, e.GpuId(gpu))
        event = e.GpuAssigned(
            gpu=e.GpuId(gpu),
            incarnation=life.incarnation,
            model=model,
            type=kind,  # type: ignore[arg-type]
            purpose="batch" if mode == "finetune" else "chat",
            slots=slots,
            decided_seq=0,
            decided_at_ms=0,
            **more,
        )
        seq = said[-1].seq
        return await self.log.append(event, expected_seq=seq, key=f"assign{gpu}{seq}")

    async def ready(self, gpu: str, slots: int, workload: str = "create/text/mistral", **more: Any) -> int:
        """Assign a GPU and wait until it says that this is in force; return the sequence of that."""
        assigned_seq = await self.assign(gpu, slots, workload, **more)
        seq, _ = await self.fact(e.GpuReady, lambda x: x.assigned_seq == assigned_seq)
        return seq

    async def lose(self, gpu: str, reason: e.LossReason = "silent") -> int:
        """Declare a GPU lost."""
        said = await self.log.history(f"gpu.{gpu}.>")
        life = [each.event for each in said if isinstance(each.event, e.GpuJoined)][-1].incarnation
        event = e.GpuLost(gpu=e.GpuId(gpu), incarnation=life, silent_ms=3000, reason=reason)
        return await self.log.append(event, expected_seq=said[-1].seq, key=f"lost{life}")

    async def session(self, name: str) -> Session:
        return fold(name, await self.log.history(f"session.{name}.>"))

    async def open(self, name: str, workload: str = "create/text/mistral", **params: Any) -> None:
        """Bring a session through the door: created, queued, admitted."""
        mode, kind, model = workload.split("/")
        about: dict[str, Any] = {"session": name, "mode": mode, "type": kind, "model": model, "owner": "ann"}
        seq = await self.log.append(e.SessionCreated(**about, params=params), expected_seq=0, key=f"{name}c")
        queued = e.TurnQueued(**about, turn=1, prompt="hello there")
        await self.log.append(queued, expected_seq=seq, key=f"{name}q")
        await self.admit(name)

    async def admit(self, name: str) -> int:
        """Admit the turn that waits, for the next attempt."""
        found = await self.session(name)
        assert found.phase == "queued", found.phase
        event = e.TurnAdmitted(
            session=found.session,
            turn=len(found.turns),
            attempt=found.turns[-1].attempt + 1,
            mode=found.mode,
            type=found.type,
            model=found.model,
            waited_ms=0,
            estimated_ms=0,
            reason="",
            decided_seq=found.last_seq,
            decided_at_ms=0,
        )
        return await self.log.append(event, expected_seq=found.last_seq, key=f"{name}a{found.last_seq}")

    async def proceed(self, name: str, prompt: str) -> None:
        """Continue a session that is idle on its GPU."""
        found = await self.session(name)
        assert found.phase == "idle", found.phase
        event = e.TurnContinued(
            session=found.session,
            turn=len(found.turns) + 1,
            type=found.type,
            model=found.model,
            gpu=e.GpuId(found.gpu or ""),
            after_seq=found.last_seq,
            prompt=prompt,
        )
        await self.log.append(event, expected_seq=found.last_seq, key=f"{name}p{found.last_seq}")

    async def tell(self, name: str, kind: type[e.TurnCancelling] | type[e.TurnYielding]) -> None:
        """Ask a running turn to stop or to give way."""
        found = await self.session(name)
        turn = found.turns[-1]
        about: dict[str, Any] = {"session": found.session, "turn": turn.turn, "gpu": found.gpu}
        if kind is e.TurnYielding:
            about |= {"attempt": turn.attempt, "decided_seq": 0, "decided_at_ms": 0}
        await self._behind(name, lambda: kind(**about))

    async def release(self, name: str, reason: e.ReleaseReason = "idle") -> int:
        """Free the slot of a session."""
        records = await self.log.history(f"session.{name}.>")
        started = [each.event for each in records if isinstance(each.event, e.TurnStarted)][-1]
        event = e.SessionReleased(
            session=started.session,
            gpu=started.gpu,
            incarnation=started.incarnation,
            reason=reason,
            decided_seq=0,
            decided_at_ms=0,
        )
        return await self._behind(name, lambda: event)

    async def _behind(self, name: str, make: Callable[[], e.AnyEvent]) -> int:
        """Append behind whatever was said last: the runner writes too."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                last = (await self.log.history(f"session.{name}.>"))[-1].seq
                try:
                    return await self.log.append(make(), expected_seq=last, key=f"{name}t{last}")
                except Conflict:
                    continue

    async def started(self, name: str, turn: int = 1, attempt: int = 1) -> tuple[int, e.TurnStarted]:
        return await self.fact(
            e.TurnStarted, lambda x: (x.session, x.turn, x.attempt) == (name, turn, attempt)
        )

    async def completed(self, name: str, turn: int = 1) -> e.TurnCompleted:
        return (await self.fact(e.TurnCompleted, lambda x: (x.session, x.turn) == (name, turn)))[1]
