"""Many turns on one model, step by step: admit, share out, compute, sample. No threads, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec
import torch

from helix_es.core.errors import EngineError
from helix_runners.engine.kv import BLOCK_TOKENS, Geometry
from helix_runners.engine.network import Rows
from helix_runners.engine.port import Adapter, EngineStats, Finished, Piece
from helix_runners.engine.sampling import choose
from helix_runners.engine.schedule import share_out
from helix_runners.engine.sessions import SessionCache
from helix_runners.engine.turn import Turn

Output = tuple[Turn, Piece | Finished]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done at once."""

    kv_budget_bytes: int
    step_tokens: int
    """Tokens computed in one step; must exceed `max_batch`, so that prompts move while all decode."""
    max_batch: int = 16
    """Turns that run at once."""
    block_tokens: int = BLOCK_TOKENS


class Computes(Protocol):
    """What the multiplexer needs of a model."""

    geometry: Geometry
    weights_bytes: int

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        """Logits, (rows with `sample`, vocabulary); extends the keys and values of every row."""

    def load_adapter(self, adapter: Adapter, in_use: Collection[str]) -> None:
        """Have `adapter` in memory; those in `in_use` stay."""

    @property
    def adapters(self) -> int:
        """Adapters in memory."""


class Multiplexer:
    """State of all turns and sessions. Of one thread; every method returns soon, `step` after one pass."""

    def __init__(self, network: Computes, limits: Limits) -> None:
        self._network = network
        self._limits = limits
        self._cache = SessionCache(network.geometry, limits.kv_budget_bytes, block_tokens=limits.block_tokens)
        self._waiting: deque[Turn] = deque()
        self._running: list[Turn] = []
        self._generated_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._running or self._waiting)

    def submit(self, turn: Turn) -> None:
        """Queue `turn`.

        Raises EngineError if its session is busy, if it can never fit the budget or if its adapter cannot be loaded.
        """
        if any(other.session == turn.session for other in self._turns()):
            raise busy(turn.session)
        need = self._cache.bytes_for(turn.total_tokens)
        if need > self._limits.kv_budget_bytes:
            raise EngineError(
                f"prompt {len(turn.prompt)} + answer {turn.max_tokens} tokens need {need} bytes of key-value "
                f"memory, kv_budget_bytes is {self._limits.kv_budget_bytes}: lower max_tokens or raise it",
                code="kv_budget_exceeded",
            )
        if turn.adapter is not None:
            in_use = {key for other in self._turns() if (key := other.adapter_key) is not None}
            self._network.load_adapter(turn.adapter, in_use)
        self._waiting.append(turn)

    def cancel(self, turn: Turn) -> list[Output]:
        """End `turn` now, keeping what was computed; nothing if it is over already."""
        if turn not in self:
            return []
        self._end(turn)
        return [(turn, turn.finished("cancelled"))]

    def cancel_session(self, session: str) -> list[Output]:
        """End the turn of `session`, if it has one."""
        return [out for turn in self._turns() if turn.session == session for out in self.cancel(turn)]

    def forget(self, session: str) -> None:
        """Drop what is kept of `session`, when its turn is over."""
        self._cache.forget(session)

    def step(self) -> list[Output]:
        """Admit, compute one pass, sample: what the turns gave out. Call `fail` after an exception."""
        self._admit()
        needs = [turn.remaining() for turn in self._running]
        granted = share_out(needs, self._limits.step_tokens)
        batch, sampled = [], []
        for turn, need, count in zip(self._running, needs, granted, strict=True):
            if count and turn.kv is not None:
                rows = Rows(
                    kv=turn.kv,
                    tokens=turn.next_tokens(count),
                    sample=count == need,
                    adapter=turn.adapter_key,
                )
                batch.append(rows)
                if rows.sample:
                    sampled.append(turn)
        if not batch:
            return []
        logits = self._network.forward(batch)
        tokens = choose(logits, [turn.sampler for turn in sampled])
        return [out for turn, token in zip(sampled, tokens, strict=True) for out in self._accept(turn, token)]

    def fail(self) -> None:
        """A step failed: end all running turns and forget their sessions. Waiting ones stay."""
        for turn in list(self._running):
            self._cache.forget(turn.session)
            self._end(turn)

    def __contains__(self, turn: Turn) -> bool:
        """Whether `turn` runs or waits."""
        return turn in self._turns()

    def stats(self) -> EngineStats:
        """What is held now."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            cached_sessions=len(self._cache),
            cache_bytes=self._cache.nbytes,
            cache_budget_bytes=self._cache.budget_bytes,
            evictions=self._cache.evictions,
            generated_tokens=self._generated_tokens,
            weights_bytes=self._network.weights_bytes,
            adapters=self._network.adapters,
        )

    def _turns(self) -> list[Turn]:
        return [*self._running, *self._waiting]

    def _admit(self) -> None:
        """First come, first served: a long turn that waits for room is not overtaken, so it cannot starve."""
        while self._waiting and len(self._running) < self._limits.max_batch:
            turn = self._waiting[0]
            kv = self._cache.lend(turn.session, turn.prompt, turn.total_tokens, turn.adapter_key)
            if kv is None:
                return
            self._waiting.popleft()
            # running before its memory is reserved: if that fails, `fail` finds it and gives the loan back
            self._running.append(turn)
            turn.start(kv)

    def _accept(self, turn: Turn, token: int) -> list[Output]:
        self._generated_tokens += 1
        text, reason = turn.accept(token)
        outputs: list[Output] = []
        if text:
            outputs.append((turn, Piece(text=text, tokens=len(turn.generated))))
        if reason is not None:
            self._end(turn)
            outputs.append((turn, turn.finished(reason)))
        return outputs

    def _end(self, turn: Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
            return
        self._running.remove(turn)
        self._cache.give_back(turn.session, turn.tokens)
        turn.kv = None


def busy(session: str) -> EngineError:
    """The error for a second generation of `session` while one is not over."""
    return EngineError(f"session {session} has a generation running; cancel it or wait", code="session_busy")
