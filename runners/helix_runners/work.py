"""What a kind of work offers to the runner: load a model, do a turn, stop it, forget a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from helix_es.core.catalogue import Model
from helix_es.core.events import Failure, Message, Usage

Say = Callable[[str], Awaitable[None]]
"""Takes the next piece of a turn's output."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One turn to be done."""

    session: str
    turn: int
    attempt: int
    messages: list[Message]
    """The conversation, its prompt last."""
    params: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn ended: with an error, on request, or with its whole output."""

    output: str = ""
    error: Failure | None = None
    cancelled: bool = False
    usage: Usage = Usage()
    finish_reason: str = "stop"
    first_token_ms: int | None = None


class Work(Protocol):
    """A kind of work, on one device. Only one call of `load` at a time; `perform` runs for many sessions at once."""

    async def load(self, slug: str, model: Model) -> None:
        """Bring the weights into memory. Raises EngineError or Misconfigured if that cannot be."""

    async def perform(self, job: Job, say: Say) -> Outcome:
        """Do the turn; never raises for what a request can cause."""

    async def cancel(self, session: str) -> None:
        """Stop the session's turn as soon as possible; its `perform` returns."""

    async def forget(self, session: str) -> None:
        """Drop what is kept of a session that is over; harmless if there is nothing."""

    @property
    def broken(self) -> str | None:
        """Why no turn can be done any more, or None: the runner then leaves, and its sessions go elsewhere."""

    def detail(self) -> dict[str, Any]:
        """Return what a heartbeat should tell of it."""

    async def close(self) -> None:
        """Free everything."""
