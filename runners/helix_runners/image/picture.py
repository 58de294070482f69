"""What is asked of the engine for one picture, and what it gives back on the way and at the end."""

from __future__ import annotations

import msgspec
from PIL.Image import Image


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One picture to be made, everything decided: the same request makes the same picture."""

    prompt: str
    negative_prompt: str = ""
    width: int
    """Pixels."""
    height: int
    steps: int
    """Of the whole way from noise; with `start`, only the last `strength` of them are gone."""
    guidance: float
    seed: int
    start: Image | None = None
    """The picture to go on from, RGB, of that size; None: from noise."""
    strength: float = 1.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A step that was computed."""

    step: int
    steps: int
    preview: bytes = b""
    """A small PNG of what there is so far; empty: none."""
    truncated: bool = False
    """The prompt is longer than the model reads, and its end was left out."""


class Painted(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that is done."""

    image: Image
    truncated: bool
