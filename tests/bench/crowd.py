"""A log as a busy shop writes it, made in memory: what the fold is measured on."""

from __future__ import annotations

from collections.abc import Iterator

from helix_es.core import events as e
from helix_es.core.subjects import subject_of

MODEL = "mistral"


class Crowd:
    """`gpus` GPUs of `slots` slots; sessions come, have turns, are released when the shop is full."""

    def __init__(self, gpus: int, slots: int) -> None:
        self.seq = 0
        self.now_ms = 1_700_000_000_000
        self._gpus = [e.GpuId(f"n{n}-0") for n in range(gpus)]
        self._slots = slots

    def record(self, event: e.AnyEvent) -> e.Recorded:
        self.seq += 1
        self.now_ms += 1
        return e.Recorded(self.seq, self.now_ms, subject_of(event), event)

    def fleet(self) -> Iterator[e.Recorded]:
        """Every GPU joins, is assigned, is ready."""
        work = e.Workload("create", "text", MODEL)
        for gpu in self._gpus:
            about = {"gpu": gpu, "incarnation": "i"}
            yield self.record(
                e.GpuJoined(
                    **about,
                    kind="a100-80",
                    memory_total_bytes=80 << 30,
                    workloads=[work],
                    slots={MODEL: self._slots},
                )
            )
            assigned = {"model": MODEL, "type": "text", "purpose": "chat", "slots": self._slots}
            yield self.record(e.GpuAssigned(**about, **assigned, decided_seq=self.seq, decided_at_ms=0))
            yield self.record(e.GpuReady(**about, model=MODEL, load_ms=1))

    def queued(self, name: str, turn: int = 1, owner: str = "ann") -> e.Recorded:
        """A turn comes to the door."""
        return self.record(
            e.TurnQueued(
                session=e.SessionId(name),
                turn=turn,
                mode="create",
                type="text",
                model=MODEL,
                owner=owner,
                prompt="Hello, how are you today?",
            )
        )

    def seated(self, name: str, gpu: e.GpuId) -> Iterator[e.Recorded]:
        """A session that has a slot and is idle."""
        session = e.SessionId(name)
        yield self.record(
            e.SessionCreated(session=session, owner="ann", mode="create", type="text", model=MODEL)
        )
        yield self.queued(name)
        yield self.record(
            e.TurnAdmitted(
                session=session,
                turn=1,
                attempt=1,
                mode="create",
                type="text",
                model=MODEL,
                waited_ms=1,
                estimated_ms=0,
                reason="1 free",
                decided_seq=self.seq,
                decided_at_ms=self.now_ms,
            )
        )
        yield self.record(e.TurnStarted(session=session, turn=1, attempt=1, gpu=gpu, incarnation="i"))
        yield self.completed(session, 1, gpu)

    def completed(self, session: e.SessionId, turn: int, gpu: e.GpuId) -> e.Recorded:
        """A turn ends well."""
        done = e.TurnCompleted(session=session, turn=turn, attempt=1, gpu=gpu, output="I am well, thank you.")
        return self.record(done)

    def more(self, session: e.SessionId, turn: int, gpu: e.GpuId) -> Iterator[e.Recorded]:
        """A further turn on the GPU that holds the session."""
        yield self.record(
            e.TurnContinued(
                session=session,
                turn=turn,
                type="text",
                model=MODEL,
                gpu=gpu,
                after_seq=self.seq,
                prompt="And what do you make of that?",
            )
        )
        yield self.record(e.TurnStarted(session=session, turn=turn, attempt=1, gpu=gpu, incarnation="i"))
        yield self.completed(session, turn, gpu)

    def sessions(self, count: int, turns: int) -> Iterator[e.Recorded]:
        """`count` sessions of `turns` turns; each gives its slot back when `slots` per GPU are full."""
        room = len(self._gpus) * self._slots
        seated: list[tuple[e.SessionId, e.GpuId]] = []
        for n in range(count):
            if len(seated) == room:
                session, gpu = seated.pop(0)
                yield self.record(
                    e.SessionReleased(
                        session=session,
                        gpu=gpu,
                        incarnation="i",
                        reason="idle",
                        decided_seq=self.seq,
                        decided_at_ms=self.now_ms,
                    )
                )
            name, gpu = f"s{n}", self._gpus[n % len(self._gpus)]
            yield from self.seated(name, gpu)
            for turn in range(2, turns + 1):
                yield from self.more(e.SessionId(name), turn, gpu)
            seated.append((e.SessionId(name), gpu))
