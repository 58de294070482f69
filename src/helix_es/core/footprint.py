"""What a model takes of a GPU's memory, and how many sessions that leaves room for: whole bytes throughout."""

from __future__ import annotations

import msgspec

from helix_es.core.hardware import Precision

MOST_SLOTS = (
    16  # until calibrated: a full read of the memory per step bounds speed too (shared design, MODELS.md)
)
RESERVE_BYTES = 3 * 2**30 // 2  # activations and the allocator's slack
USABLE_PERCENT = 90  # of a GPU's memory; the rest is the driver's and fragmentation

BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# quantisation -> bytes of a parameter, as a fraction
QUANTISATIONS: dict[str, tuple[int, int]] = {
    "int8": (67, 64),  # a byte, and 3/64 for scales and outliers: the 7.3 GiB of Mistral-7B in MODELS.md
    # 4 bits; a byte of scale for 64 of them; 4 bytes of scale for 256 such bytes ("double quantisation"): 3.84 GiB
    "nf4": (8452, 16384),
}
UNQUANTISED_SHARE = 8  # an eighth: Llama-3-8B's, the largest among the usual models of 7 to 8 billion


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory, in one precision."""

    weights_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    session_bytes: int
    """Of a session, beside keys and values."""

    @property
    def per_session_bytes(self) -> int:
        """One session whose context is full; 0: not known."""
        return self.kv_bytes_per_token * self.context_tokens + self.session_bytes

    @property
    def least_bytes(self) -> int:
        """The memory that a GPU needs to hold one session."""
        inner = self.weights_bytes + RESERVE_BYTES + max(1, self.per_session_bytes)
        return -(-inner * 100 // USABLE_PERCENT)

    def room_bytes(self, memory_bytes: int) -> int:
        """Return what is left for sessions; negative if not even the weights fit."""
        return memory_bytes * USABLE_PERCENT // 100 - self.weights_bytes - RESERVE_BYTES

    def quotient(self, memory_bytes: int) -> int | None:
        """Return how many sessions fit by memory alone; None if what one takes is not known."""
        if self.room_bytes(memory_bytes) <= 0:
            return 0
        each = self.per_session_bytes
        return self.room_bytes(memory_bytes) // each if each else None

    def slots(self, memory_bytes: int) -> int:
        """Return the coefficient that follows from memory; 0: the model does not fit."""
        fitting = self.quotient(memory_bytes)
        return MOST_SLOTS if fitting is None else min(MOST_SLOTS, fitting)


def weights_bytes(parameters: int, kept: int | None, precision: Precision, quantisation: str | None) -> int:
    """Return the bytes of `parameters`, of which quantisation leaves `kept` (embeddings, head, norms) as they are."""
    if quantisation is None:
        return parameters * BYTES[precision]
    kept = parameters // UNQUANTISED_SHARE if kept is None else min(kept, parameters)
    above, below = QUANTISATIONS[quantisation]
    return kept * BYTES[precision] + -(-(parameters - kept) * above // below)
