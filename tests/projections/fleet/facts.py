"""Facts about pools and their GPUs, in the order in which a shop says them."""

from __future__ import annotations

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.testing import InMemoryLog

WORK = e.Workload("create", "text", "smollm2")


class Shop:
    """A log in memory, and short words for what happens in it."""

    def __init__(self) -> None:
        self.log = InMemoryLog(lambda: 1_000 + len(self.log.records))
        self._keys = 0

    def say(self, event: e.AnyEvent, about: str) -> int:
        """Append `event` behind the last that has the same fence."""
        said = [record.seq for record in self.log.records if record.subject.split(".")[1] == about]
        self._keys += 1
        return self.log.append_now(event, expected_seq=said[-1] if said else 0, key=str(self._keys))

    def resized(self, pool: str, size: int) -> None:
        self.say(e.FleetResized(pool=pool, size=size, reason="test", decided_seq=0, decided_at_ms=0), pool)

    def joined(self, gpu: str, pool: str) -> None:
        event = e.GpuJoined(
            gpu=e.GpuId(gpu),
            incarnation="i1",
            kind="cpu",
            memory_total_bytes=1,
            workloads=[WORK],
            slots={"smollm2": 2},
            pool=pool,
        )
        self.say(event, gpu)

    def assigned(self, gpu: str, *, leaving: bool = False) -> None:
        event = e.GpuAssigned(
            gpu=e.GpuId(gpu),
            incarnation="i1",
            model="smollm2",
            type="text",
            purpose="chat",
            slots=0 if leaving else 2,
            leaving=leaving,
            decided_seq=0,
            decided_at_ms=0,
        )
        seq = self.say(event, gpu)
        ready = e.GpuReady(gpu=event.gpu, incarnation="i1", model="smollm2", load_ms=1, assigned_seq=seq)
        self.say(ready, gpu)

    def left(self, gpu: str) -> None:
        self.say(e.GpuLeft(gpu=e.GpuId(gpu), incarnation="i1"), gpu)

    def seated(self, session: str, gpu: str) -> None:
        """`session` comes, and is bound to `gpu`."""
        about = e.SessionId(session)
        queued = e.TurnQueued(
            session=about, turn=1, mode="create", type="text", model="smollm2", owner="o", prompt="?"
        )
        admitted = e.TurnAdmitted(
            session=about,
            turn=1,
            attempt=1,
            mode="create",
            type="text",
            model="smollm2",
            waited_ms=0,
            estimated_ms=None,
            reason="test",
            decided_seq=0,
            decided_at_ms=0,
        )
        started = e.TurnStarted(session=about, turn=1, attempt=1, gpu=e.GpuId(gpu), incarnation="i1")
        for event in (queued, admitted, started):
            self.say(event, session)

    def released(self, session: str, gpu: str) -> None:
        event = e.SessionReleased(
            session=e.SessionId(session),
            gpu=e.GpuId(gpu),
            incarnation="i1",
            reason="idle",
            decided_seq=0,
            decided_at_ms=0,
        )
        completed = e.TurnCompleted(session=event.session, turn=1, attempt=1, gpu=event.gpu, output="done")
        self.say(completed, session)
        self.say(event, session)

    def state(self) -> Occupancy:
        """Return the fold of all that was said."""
        state = Occupancy()
        for record in self.log.records:
            state.apply(record)
        return state
