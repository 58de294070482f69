"""What kinds of GPU are known by name: their memory, and the precision that a model is loaded in there."""

from __future__ import annotations

from typing import Literal

import msgspec

GIB = 2**30

Precision = Literal["float32", "bfloat16", "float16"]


class GpuKind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of GPU as its driver leaves it to programs."""

    memory_bytes: int
    """Usable: somewhat less than the name says (shared design, MODELS.md)."""
    bfloat16: bool = True
    """Whether it computes bfloat16 itself; where it only emulates it, float16 is faster."""


KNOWN_GPUS: dict[str, GpuKind] = {
    "a100-40": GpuKind(memory_bytes=394 * GIB // 10),
    "a100-80": GpuKind(memory_bytes=79 * GIB),
    "h100-80": GpuKind(memory_bytes=79 * GIB),
    "l4-24": GpuKind(memory_bytes=22 * GIB),
    "rtx4090-24": GpuKind(memory_bytes=235 * GIB // 10),
    "t4-16": GpuKind(memory_bytes=146 * GIB // 10, bfloat16=False),
}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as far as a coefficient depends on it."""

    kind: str
    memory_bytes: int = 0
    """0: not known."""
    offered: int | None = None
    """Sessions of the model in question that its runner offers to hold; None: it does not offer the model."""

    @property
    def total_bytes(self) -> int:
        """Its memory: as it says itself, else as its kind is known to have; 0: not known."""
        known = KNOWN_GPUS.get(self.kind)
        return self.memory_bytes or (known.memory_bytes if known else 0)


def usual_precision(kind: str) -> Precision:
    """Return what `auto` means there, as the engine chooses it: float32 on a processor, else half of it."""
    if kind == "cpu":
        return "float32"
    known = KNOWN_GPUS.get(kind)
    return "float16" if known is not None and not known.bfloat16 else "bfloat16"
