"""What a kind of work offers to the runner: load a model, do a turn, stop it, forget a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from helix_es.core.catalogue import Model
from helix_es.core.events import Failure, Message, Usage, Workload
from helix_es.core.history import Session, Turn


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One turn to be done: the session as the log has it, the turn its last."""

    state: Session
    params: dict[str, Any]
    """The session's, with the turn's own before them."""

    @property
    def session(self) -> str:
        return self.state.session

    @property
    def turn(self) -> Turn:
        return self.state.turns[-1]

    @property
    def messages(self) -> list[Message]:
        """The conversation, its prompt last."""
        return self.state.messages(self.turn.turn)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn ended: with an error, on request, or with its whole output."""

    output: str = ""
    files: list[str] = msgspec.field(default_factory=list)
    """Ids of what was made."""
    error: Failure | None = None
    retry: bool = False
    """The error is not the request's: another GPU, or another attempt, may do it."""
    cancelled: bool = False
    usage: Usage = Usage()
    finish_reason: str = "stop"
    first_token_ms: int | None = None


class Output(Protocol):
    """Where a turn's work says what there is before it is over."""

    async def say(self, text: str) -> None:
        """Give out the next piece of text."""

    async def step(
        self,
        step: int,
        steps: int,
        detail: Mapping[str, Any] | None = None,
        *,
        preview: bytes = b"",
        checkpoint: Sequence[str] = (),
    ) -> bool:
        """Say that `step` of `steps` is done; return whether that became a fact.

        Everybody who watches hears of each; the log keeps one a second, and each that brings a checkpoint (ids of
        files that another GPU can go on from). `preview`: a small PNG. Raises NotOurs if the turn is another's now.
        """

    def alive(self) -> None:
        """Show that the turn moves, between the parts of what takes long; from any thread."""


class Work(Protocol):
    """A kind of work, on one device. Only one call of `load` at a time; `perform` runs for many sessions at once."""

    async def load(self, workload: Workload, model: Model) -> None:
        """Bring the weights into memory, in place of what was there; `workload.model` is the slug of `model`.

        Raises EngineError or Misconfigured if that cannot be.
        """

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Do the turn; never raises for what a request can cause, but lets pass what `output` raises.

        When it is cancelled or `output` raises, nothing of the turn may go on computing. After an error, out of
        memory for one, turns of other sessions can be done.
        """

    async def cancel(self, session: str) -> None:
        """Stop the session's turn as soon as possible; its `perform` returns."""

    async def give_way(self, session: str) -> None:
        """Say a checkpoint as soon as possible, and go on: the session is about to be moved. A turn that cannot be
        gone on with elsewhere does nothing."""

    async def forget(self, session: str) -> None:
        """Drop what is kept of a session that is over; harmless if there is nothing."""

    @property
    def broken(self) -> str | None:
        """Why no turn can be done any more, or None: the runner then leaves, and its sessions go elsewhere."""

    def detail(self) -> dict[str, Any]:
        """Return what a heartbeat should tell of it."""

    async def close(self) -> None:
        """Free everything."""
