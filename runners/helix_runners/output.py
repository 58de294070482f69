"""What a turn says before it is over: pieces of text, several at once when they come fast, and its steps."""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from helix_es.core import events as e
from helix_es.core.errors import NotOurs, Unavailable
from helix_es.jetstream.deltas import Delta, Deltas, Step
from helix_runners.bindings import Binding
from helix_runners.stall import Stall

log = structlog.get_logger(__name__)

DELTA_EVERY_S = 0.02  # at most fifty messages a second a turn; a reader sees no difference
FACT_EVERY_S = 1.0  # what is in between is told, but not kept

Note = Callable[[e.TurnProgressed], Awaitable[bool]]
"""Appends a step as a fact; returns whether it is stored."""


class Speaker:
    """The `Output` of one attempt."""

    def __init__(
        self, deltas: Deltas, about: e.TurnStarted, binding: Binding, stall: Stall, note: Note
    ) -> None:
        self._deltas = deltas
        self._about = about
        self._binding = binding
        self._stall = stall
        self._note = note
        self._held = ""
        self._sent = 0
        self._sent_at = 0.0
        self._noted_at = time.monotonic()

    async def say(self, text: str) -> None:
        """Publish `text`, now or together with what follows it closely. Raises NotOurs if nobody waits for it."""
        self._moved()
        self._held += text
        if time.monotonic() - self._sent_at >= DELTA_EVERY_S:
            await self.flush()

    async def flush(self) -> None:
        """Publish what is held back."""
        if not self._held:
            return
        text, self._held = self._held, ""
        await self._publish(offset=self._sent, text=text)
        self._sent += len(text)
        self._sent_at = time.monotonic()

    async def step(
        self,
        step: int,
        steps: int,
        detail: Mapping[str, Any] | None = None,
        *,
        preview: bytes = b"",
        checkpoint: Sequence[str] = (),
    ) -> bool:
        """See `Output.step`."""
        self._moved()
        told = dict(detail or {})
        shown = base64.b64encode(preview).decode()
        await self._publish(step=Step(step=step, steps=steps, detail=told, preview=shown))
        if not checkpoint and time.monotonic() - self._noted_at < FACT_EVERY_S:
            return False
        self._noted_at = time.monotonic()
        about = self._about
        return await self._note(
            e.TurnProgressed(
                session=about.session,
                turn=about.turn,
                attempt=about.attempt,
                gpu=about.gpu,
                step=step,
                steps=steps,
                detail=told,
                checkpoint=list(checkpoint),
            )
        )

    def alive(self) -> None:
        """See `Output.alive`."""
        self._stall.moved()

    def _moved(self) -> None:
        self._stall.moved()
        if self._binding.released:
            raise NotOurs(f"turn {self._about.turn} of {self._about.session} was taken from this GPU")

    async def _publish(self, **what: Any) -> None:
        about = self._about
        delta = Delta(session=about.session, turn=about.turn, attempt=about.attempt, **what)
        try:
            await self._deltas.publish(delta)
        except Unavailable as error:  # the end of the turn carries all of it
            log.warning("delta_not_sent", error=str(error))
