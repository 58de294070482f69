"""The values that facts are made of: names, workloads, messages, usage, the policy."""

from __future__ import annotations

from typing import Literal, NewType

import msgspec

SessionId = NewType("SessionId", str)
GpuId = NewType("GpuId", str)

Mode = Literal["create", "finetune"]
Kind = Literal["text", "image"]
Purpose = Literal["chat", "batch"]
ReleaseReason = Literal["idle", "drained", "lost", "restarted", "closed", "ended"]


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


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's rules."""

    idle_after_ms: int = 10_000
    """A session that said nothing for so long gives its slot back while others wait."""
    coefficients: dict[str, int] = msgspec.field(default_factory=dict)
    """`<gpu kind>/<model>` -> sessions that one such GPU may hold; goes before what the runner computed."""
