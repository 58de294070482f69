"""What each client is going to do: from the seed and the number of the visit alone."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

import msgspec

OWNERS = {"ann": 6, "bob": 2, "cyd": 1, "dan": 1, "eve": 1}
"""Owner -> weight: ann alone is half of the crowd."""
TEXT, REAL_TEXT, IMAGE, REAL_IMAGE = "mistral", "smollm2", "sdxl", "scenes"
WORDS = (
    "what",
    "who",
    "why",
    "red",
    "blue",
    "green",
    "river",
    "stone",
    "night",
    "morning",
    "tell",
    "me",
    "about",
    "more",
    "and",
    "then",
    "again",
)

Closing = Literal["never", "after", "midway"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One turn."""

    prompt: str
    params: dict[str, Any]
    max_wait_s: float | None = None
    follow: bool = True
    """Reads the event stream; else asks now and then."""
    drop_after: int | None = None
    """Events after which it hangs up and goes on at the other API."""
    cancel_after_s: float | None = None
    think_s: float = 0.0
    """Before it."""


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One session."""

    number: int
    owner: str
    mode: Literal["create", "finetune"] = "create"
    type: Literal["text", "image"] = "text"
    model: str
    priority: int = 0
    steps: list[Step]
    closing: Closing = "never"

    @property
    def key(self) -> str:
        """The Idempotency-Key of its first request."""
        return f"visit-{self.number}"


def visit(seed: int, number: int) -> Visit:
    """Return the visit with that number."""
    random = Random(f"{seed}/visit/{number}")
    owner = random.choices(list(OWNERS), list(OWNERS.values()))[0]
    drawn = random.random()
    if drawn < 0.05:
        return _finetune(random, number, owner)
    if drawn < 0.15:
        return _images(random, number, owner)
    real = random.random() < 0.06
    steps = [_text(random, turn, real=real) for turn in range(random.choice((1, 2, 2, 3, 4)))]
    return Visit(
        number=number,
        owner=owner,
        model=REAL_TEXT if real else TEXT,
        priority=random.choices((0, 1, -1), (8, 1, 1))[0],
        steps=steps,
        closing=random.choices(("never", "after", "midway"), (6, 3, 1))[0],
    )


def _prompt(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(3, 20)))


def _text(random: Random, turn: int, *, real: bool) -> Step:
    tokens = random.randint(3, 8) if real else random.randint(8, 48)
    # one in five simulated answers has no limit: 16 to 127 tokens
    params: dict[str, Any] = {} if not real and random.random() < 0.2 else {"max_tokens": tokens}
    return _step(random, turn, params)


def _step(random: Random, turn: int, params: dict[str, Any]) -> Step:
    return Step(
        prompt=_prompt(random),
        params=params,
        max_wait_s=round(random.uniform(2, 8), 1) if random.random() < 0.1 else None,
        follow=random.random() < 0.7,
        drop_after=random.randint(1, 30) if random.random() < 0.3 else None,
        cancel_after_s=round(random.uniform(0, 1.5), 2) if random.random() < 0.07 else None,
        think_s=round(random.uniform(0.05, 1.5), 2) if turn else 0.0,
    )


def _images(random: Random, number: int, owner: str) -> Visit:
    real = random.random() < 0.1
    steps = [
        _step(random, turn, {"steps": random.randint(2, 4 if real else 8)})
        for turn in range(random.randint(1, 2))
    ]
    model = REAL_IMAGE if real else IMAGE
    return Visit(number=number, owner=owner, type="image", model=model, steps=steps)


def _finetune(random: Random, number: int, owner: str) -> Visit:
    params = {"epochs": random.randint(1, 4)}
    step = msgspec.structs.replace(_step(random, 0, params), max_wait_s=None)
    return Visit(number=number, owner=owner, mode="finetune", model=TEXT, steps=[step])
