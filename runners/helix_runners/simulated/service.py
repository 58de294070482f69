"""How long a simulated GPU takes and what goes wrong on it: a model of service, without a clock of its own."""

from __future__ import annotations

import math
from random import Random
from typing import Literal

import msgspec

PREFILL_TOKENS_PER_S = 8000.0  # a 7-billion model on an A100 reads prompts about so fast
SHORT_PROMPT_TOKENS = 512  # what `first_token_ms` is meant for; only what is longer takes longer
CROWDING = 0.07  # of a step, for each further session: at 8 sessions a token takes 1.5 times as long
JITTER = 0.1  # of every duration, either way
DIGITS = 6  # of a loss, as the fine-tune runner tells it

FateName = Literal["failed", "out_of_memory"]


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """That an attempt will not end well, and when."""

    name: FateName
    done: float
    """Share of the work that is done then, 0 to 1."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated GPU is like. All durations are those of a GPU that serves one session alone."""

    first_token_ms: int = 200
    tokens_per_s: float = 40.0
    load_ms: int = 2000
    step_ms: int = 500
    """Of a picture, and of a fine-tune."""
    checkpoint_every: int = 10
    """Steps of a fine-tune."""
    fail_rate: float = 0.0
    """Share of the attempts that do not end well."""

    def first_token_s(self, new_tokens: int, sessions: int) -> float:
        """Return the seconds to the first token, with `new_tokens` to read and so many sessions on the GPU."""
        long_s = max(0, new_tokens - SHORT_PROMPT_TOKENS) / PREFILL_TOKENS_PER_S
        return (self.first_token_ms / 1000 + long_s) * crowded(sessions)

    def decode_rate(self, sessions: int) -> float:
        """Return the tokens per second that each of so many sessions gets."""
        return self.tokens_per_s / crowded(sessions)

    def step_s(self, sessions: int) -> float:
        """Return the seconds of a step; pictures and fine-tunes share their GPU in turns."""
        return self.step_ms / 1000 * max(1, sessions)

    def fate(self, random: Random) -> Fate | None:
        """Draw what happens to an attempt; None: it ends well."""
        if self.fail_rate <= 0.0 or random.random() >= self.fail_rate:
            return None
        return Fate(name="failed" if random.random() < 0.5 else "out_of_memory", done=random.random())


def crowded(sessions: int) -> float:
    """Return how many times longer a step takes with so many sessions in it."""
    return 1.0 + CROWDING * max(0, sessions - 1)


def jittered(seconds: float, random: Random) -> float:
    """Return a duration near `seconds`."""
    return seconds * random.uniform(1.0 - JITTER, 1.0 + JITTER)


def loss(step: int, steps: int) -> float:
    """Return the loss after `step` of `steps`: it depends on nothing else, so every attempt tells the same curve."""
    return round(0.6 + 2.4 * math.exp(-4.0 * step / max(1, steps)), DIGITS)
