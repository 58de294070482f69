"""A log told by hand, for tests of the proof: facts in order, each with what it needs and no more."""

from __future__ import annotations

from typing import Any

from helix_es.core import events as e
from helix_es.core.subjects import subject_of
from helix_runners.simulated.words import answer
from tests.chaos.proof import Proof, prove
from tests.chaos.told import Ack, Stream, Told

CHAT = e.Workload("create", "text", "mistral")
BATCH = e.Workload("finetune", "text", "mistral")
STEP_MS = 10
TOKENS = {"max_tokens": 5}


class Story:
    """Each method appends one fact, except those that are named after more."""

    def __init__(self) -> None:
        self.records: list[e.Recorded] = []
        self.told = Told()

    def tell(self, event: e.AnyEvent) -> int:
        """Append a fact and return its sequence."""
        seq = len(self.records) + 1
        self.records.append(e.Recorded(seq, seq * STEP_MS, subject_of(event), event))
        return seq

    def proof(self) -> Proof:
        """Return what the proof finds."""
        return prove(self.records, self.told)

    def broken(self) -> list[tuple[str, int]]:
        """Return the rule and the sequence of each violation."""
        return [(each.rule, each.seq) for each in self.proof().violations]

    # -- GPUs

    def policy(self, reserved: int) -> int:
        return self.tell(e.PolicySet(policy=e.Policy(reserved=reserved)))

    def join(self, gpu: str, incarnation: str = "i", *, batch: bool = False) -> int:
        works = [CHAT, BATCH] if batch else [CHAT]
        about: dict[str, Any] = {"kind": "a100-80", "memory_total_bytes": 1, "workloads": works}
        return self.tell(e.GpuJoined(gpu=e.GpuId(gpu), incarnation=incarnation, **about))

    def assign(
        self, gpu: str, slots: int, purpose: e.Purpose = "chat", incarnation: str = "i", decided: int = 0
    ) -> int:
        return self.tell(
            e.GpuAssigned(
                gpu=e.GpuId(gpu),
                incarnation=incarnation,
                model="mistral",
                type="text",
                purpose=purpose,
                slots=slots,
                decided_seq=decided or len(self.records),
                decided_at_ms=0,
            )
        )

    def ready(self, gpu: str, assigned_seq: int, incarnation: str = "i") -> int:
        about: dict[str, Any] = {"model": "mistral", "load_ms": 1, "assigned_seq": assigned_seq}
        return self.tell(e.GpuReady(gpu=e.GpuId(gpu), incarnation=incarnation, **about))

    def lose(self, gpu: str, incarnation: str = "i") -> int:
        return self.tell(e.GpuLost(gpu=e.GpuId(gpu), incarnation=incarnation, silent_ms=3000))

    def serving(self, gpu: str, slots: int = 1, *, purpose: e.Purpose = "chat", batch: bool = False) -> None:
        """A GPU joins, is assigned and ready."""
        self.join(gpu, batch=batch)
        self.ready(gpu, self.assign(gpu, slots, purpose))

    # -- sessions

    def open(self, sid: str, *, acknowledged: bool = True, mode: e.Mode = "create") -> int:
        """A session is created and its first turn queued."""
        session = e.SessionId(sid)
        about: dict[str, Any] = {"session": session, "mode": mode, "type": "text", "model": "mistral"}
        self.tell(e.SessionCreated(**about, owner="ann", params=TOKENS))
        seq = self.tell(e.TurnQueued(**about, turn=1, owner="ann", prompt="hello"))
        self.told.visits += 1
        self.told.asked[sid] = 1
        if acknowledged:
            self.told.acks.append(Ack(session=sid, turn=1, at_ms=seq))
        return seq

    def admit(self, sid: str, turn: int = 1, attempt: int = 1, mode: e.Mode = "create") -> int:
        return self.tell(
            e.TurnAdmitted(
                session=e.SessionId(sid),
                turn=turn,
                attempt=attempt,
                mode=mode,
                type="text",
                model="mistral",
                waited_ms=1,
                estimated_ms=1,
                reason="",
                decided_seq=1,
                decided_at_ms=1,
            )
        )

    def start(self, sid: str, gpu: str, turn: int = 1, attempt: int = 1, incarnation: str = "i") -> int:
        about: dict[str, Any] = {"turn": turn, "attempt": attempt, "incarnation": incarnation}
        return self.tell(e.TurnStarted(session=e.SessionId(sid), gpu=e.GpuId(gpu), **about))

    def begin(self, sid: str, gpu: str) -> int:
        """A session comes in and its first turn starts."""
        self.open(sid)
        self.admit(sid)
        return self.start(sid, gpu)

    def more(self, sid: str, gpu: str, turn: int) -> int:
        self.told.asked[sid] += 1
        about: dict[str, Any] = {"turn": turn, "type": "text", "model": "mistral", "after_seq": 1}
        return self.tell(
            e.TurnContinued(session=e.SessionId(sid), gpu=e.GpuId(gpu), prompt="and then?", **about)
        )

    def complete(self, sid: str, gpu: str, turn: int = 1, attempt: int = 1, output: str | None = None) -> int:
        said = text(sid, turn) if output is None else output
        about: dict[str, Any] = {"turn": turn, "attempt": attempt, "output": said}
        return self.tell(e.TurnCompleted(session=e.SessionId(sid), gpu=e.GpuId(gpu), **about))

    def cancelling(self, sid: str, gpu: str, turn: int = 1) -> int:
        return self.tell(e.TurnCancelling(session=e.SessionId(sid), turn=turn, gpu=e.GpuId(gpu)))

    def release(self, sid: str, gpu: str, reason: e.ReleaseReason = "idle", incarnation: str = "i") -> int:
        about: dict[str, Any] = {"incarnation": incarnation, "decided_seq": 1, "decided_at_ms": 1}
        return self.tell(
            e.SessionReleased(session=e.SessionId(sid), gpu=e.GpuId(gpu), reason=reason, **about)
        )

    def close(self, sid: str) -> int:
        return self.tell(e.SessionClosed(session=e.SessionId(sid)))

    # -- clients

    def heard(self, sid: str, turn: int = 1, state: str = "completed") -> Stream:
        """A client followed the turn and was told its text."""
        stream = Stream(session=sid, turn=turn, state=state, output=text(sid, turn))
        stream.heard(1, 0, text(sid, turn))
        self.told.streams.append(stream)
        return stream


def text(sid: str, turn: int = 1) -> str:
    """Return what a simulated GPU says."""
    return answer(sid, turn, TOKENS)
