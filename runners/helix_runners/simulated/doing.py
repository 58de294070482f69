"""What an attempt has at hand, whichever kind of work it is; and what is known of its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.catalogue import Model
from helix_es.core.history import fold
from helix_es.core.subjects import session_filter
from helix_es.jetstream.deltas import Delta, Deltas
from helix_es.jetstream.tasks import TaskEvent
from helix_es.log import Log
from helix_runners.faults import OUT_OF_MEMORY
from helix_runners.output import DELTA_EVERY_S
from helix_runners.simulated.attempt import Attempt
from helix_runners.simulated.files import Makings
from helix_runners.simulated.gpu import Known, Seat, SimulatedGpu
from helix_runners.simulated.patience import Patience
from helix_runners.simulated.service import Fate, FateName, Service
from helix_runners.simulated.words import prompt_tokens

MOST_DELTAS_PER_S = 2000.0  # of the process: with many turns at once, each speaks in longer pieces
FAILURES: dict[FateName, e.Failure] = {
    "failed": e.Failure(code="simulated_failure", message="simulated: this turn was to fail"),
    "out_of_memory": e.Failure(code=OUT_OF_MEMORY, message="simulated: the GPU's memory is full"),
}
UNHEARD_S = 1.0  # between two looks at how crowded the GPU is, where nobody listens


class NoDeltas(Deltas):
    """Says nothing: what is measured then is dispatch."""

    async def publish(self, delta: Delta) -> None:
        """Drop it."""


@dataclass(eq=False)
class Tools:
    """What all attempts of the process share."""

    log: Log
    deltas: Deltas
    makings: Makings
    service: Service
    random: Random
    models: Mapping[str, Model]
    patiently: Patience = field(default_factory=Patience)
    attempts: set[Attempt] = field(default_factory=set)
    """Those that run."""

    @property
    def piece_s(self) -> float:
        """How long a turn gathers what it says."""
        if isinstance(self.deltas, NoDeltas):
            return UNHEARD_S
        return max(DELTA_EVERY_S, len(self.attempts) / MOST_DELTAS_PER_S)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A turn, as far as simulated work looks at it."""

    owner: str
    params: dict[str, Any]
    """The session's, with the turn's own before them."""
    prompt_tokens: int
    cached_tokens: int = 0
    checkpoint: list[str] = msgspec.field(default_factory=list)


@dataclass(eq=False)
class Doing:
    """One attempt at work."""

    tools: Tools
    gpu: SimulatedGpu
    attempt: Attempt
    told: Told
    fate: Fate | None
    begun_s: float
    """When the task was in hand, on the loop's clock."""

    @property
    def event(self) -> TaskEvent:
        return self.attempt.event

    @property
    def crowd(self) -> int:
        """Turns that run on this GPU."""
        return max(1, sum(seat.attempt is not None for seat in self.gpu.seats.values()))

    def elapsed_ms(self) -> int:
        """Return the milliseconds since the task was in hand."""
        return int((asyncio.get_running_loop().time() - self.begun_s) * 1000)

    def failure(self, done: float) -> e.Failure | None:
        """Return why it fails, with that share of the work done; None: it goes on."""
        if self.fate is None or done < self.fate.done:
            return None
        return FAILURES[self.fate.name]


async def remember(source: Log, event: TaskEvent, seat: Seat) -> Told:
    """Return what is known of a turn: further ones from memory, first ones from the log."""
    if isinstance(event, e.TurnContinued) and seat.known is not None:
        held = seat.held_tokens if event.history is None else 0
        said = "".join(message.content for message in event.history or ()) + event.prompt
        return Told(
            owner=seat.known.owner,
            params={**seat.known.params, **event.params},
            prompt_tokens=held + prompt_tokens(said),
            cached_tokens=held,
        )
    state = fold(event.session, await source.history(session_filter(event.session), fresh=True))
    seat.known = Known(state.owner, state.params)
    turn = state.turns[event.turn - 1]
    said = "".join(message.content for message in state.messages(event.turn))
    return Told(
        owner=state.owner,
        params={**state.params, **turn.params},
        prompt_tokens=prompt_tokens(said),
        checkpoint=turn.checkpoint,
    )
