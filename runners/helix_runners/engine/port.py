"""What a text engine offers to the runner: submit a conversation, stream its pieces, cancel, report."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from helix_es.core.events import Message

FinishReason = Literal["stop", "length", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens. `temperature` 0 is greedy; `seed` makes a turn repeatable."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversation is answered with beside the model: a LoRA in peft's format."""

    key: str
    """The same key always means the same weights."""
    folder: Path


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A run of text that is final: it never changes after it was given out."""

    text: str
    tokens: int
    """Tokens sampled so far in this turn."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The last item of a stream."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were still in memory."""
    completion_tokens: int


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine holds now; bytes are bytes, tokens are counts since start."""

    running: int
    waiting: int
    cached_sessions: int
    cache_bytes: int
    cache_budget_bytes: int
    evictions: int
    generated_tokens: int
    weights_bytes: int
    adapters: int = 0
    """Adapters in memory."""


class TextEngine(Protocol):
    """Multiplexes many sessions on one model that stays in memory."""

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def stopped(self) -> str | None:
        """Why it computes no more, or None while it does."""

    def generate(
        self,
        session: str,
        messages: Sequence[Message],
        sampling: Sampling,
        adapter: Adapter | None = None,
    ) -> AsyncGenerator[Piece | Finished, None]:
        """Stream the answer to `messages`; the last item is `Finished`.

        Sessions with different adapters, and with none, share one model and each step. One generation a session
        at a time. Closing the iterator cancels it at the next step.
        Raises PromptTooLong before any computation if prompt + 1 token do not fit the context
        (max_tokens is lowered to what fits); EngineError if the engine has stopped or the adapter cannot be used.
        """

    async def cancel(self, session: str) -> None:
        """End the generation of `session` at the next step; its stream ends with reason `cancelled`."""

    async def forget(self, session: str) -> None:
        """Drop what is kept of `session`; harmless if there is nothing."""

    def stats(self) -> EngineStats:
        """What the engine holds now."""

    async def close(self) -> None:
        """Stop computing; generations that still run end with EngineError."""
