"""The values that facts are made of: names, workloads, messages, usage, the policy."""

from __future__ import annotations

from typing import Literal, NewType

import msgspec

SessionId = NewType("SessionId", str)
GpuId = NewType("GpuId", str)

Mode = Literal["create", "finetune"]
Kind = Literal["text", "image"]
Purpose = Literal["chat", "batch"]
ReleaseReason = Literal["idle", "drained", "lost", "restarted", "closed", "ended", "preempted", "returned"]
LossReason = Literal["silent", "stuck"]


class Workload(msgspec.Struct, frozen=True, order=True, array_like=True):
    """What a runner filters on: one queue, one task subject and one shared consumer for each."""

    mode: Mode
    type: Kind
    model: str
    """Slug in the model catalogue."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One utterance of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one turn."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that did not have to be computed again."""
    completion_tokens: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a turn failed: a stable code and a text that says what to do."""

    code: str
    message: str


class PoolRule(msgspec.Struct, frozen=True, kw_only=True):
    """How one pool of GPUs grows and shrinks."""

    min: int = 0
    max: int = 1
    idle_ms: int = 300_000
    """A GPU that held nobody for so long may go."""
    wait_target_ms: int = 10_000
    """The pool grows when somebody would wait longer than this."""
    workloads: list[Workload] = msgspec.field(default_factory=list)
    """What a GPU of this pool can run."""
    slots: dict[str, int] = msgspec.field(default_factory=dict)
    """Sessions that one of its GPUs will hold, by model; 1 where nothing is said."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's rules."""

    idle_after_ms: int = 10_000
    """A session that said nothing for so long gives its slot back while others wait."""
    coefficients: dict[str, int] = msgspec.field(default_factory=dict)
    """`<gpu kind>/<model>` -> sessions that one such GPU may hold; goes before what the runner computed."""
    reserved: int = 0
    """GPUs that can do batch work and are never given to chats."""
    attempts: int = 3
    """A turn that failed with so many GPUs under it is not tried again."""
    slots_per_owner: int = 0
    """Slots that one owner may hold at once; 0: as many as the fair queue gives."""
    switch_after_ms: int = 5_000
    """A GPU that holds nobody for so long may be given to another model: hysteresis."""
    starve_after_ms: int = 30_000
    """After such a wait for a model that no GPU serves, one is drained for it."""
    yield_ms: int = 10_000
    """How long a fine-tune that must give way may take to make a checkpoint."""
    pools: dict[str, PoolRule] = msgspec.field(default_factory=dict)
    rules: int = 0
    """Version of the code that decides by this, `decision.RULES`; 0: a log from before it was recorded."""
