"""How long a GPU takes for a turn: reading the prompt, then tokens at a rate that follows how many share the GPU."""

from __future__ import annotations

import msgspec


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU with one model. The defaults: an A100-80 with Mistral-7B in bf16, from the memory it must read.

    A step reads all weights (13.5 GiB at 2,039 GB/s) and the keys and values of each session in it (131,072 bytes a
    token, contexts of 8k). With the 56 sessions that fit, that gives the 27 tokens/s of shared/MODELS.md.
    """

    weights_ms: float = 7.1
    """Of a step: reading the weights."""
    session_ms: float = 0.53
    """Of a step: reading one session's keys and values."""
    prefill_tokens_per_s: float = 8000.0
    """Prompt tokens; a 7-billion model at about a third of the GPU's peak."""
    first_ms: float = 0.0
    """Before the first token, however short the prompt."""
    first_session_ms: float = 0.0
    """The same, for each further turn that runs on the GPU then."""
    serial: bool = True
    """Whether one prompt is read after the other; else all that are there at once, none slower for it."""
    speed: float = 1.0
    """Of fine-tunes and pictures: milliseconds of their work that are done in one, if there is but one on the GPU."""
    checkpoint_ms: int = 500
    """From being asked to give way to the checkpoint that a fine-tune goes on from; a simulated one's step."""
    load_ms: int = 15_000
    """Weights from disk into memory."""

    def prefill_ms(self, tokens: int, sessions: int = 1) -> float:
        """Return how long reading `tokens` of a prompt takes, with so many turns on the GPU, ms."""
        fixed_ms = self.first_ms + self.first_session_ms * max(0, sessions - 1)
        return fixed_ms + tokens / self.prefill_tokens_per_s * 1000

    def tokens_per_ms(self, sessions: int) -> float:
        """Return what each of so many sessions gets while they decode together."""
        return 1.0 / (self.weights_ms + self.session_ms * max(1, sessions))

    def work_per_ms(self, jobs: int) -> float:
        """Return what each of so many fine-tunes or pictures gets: they share their GPU in turns."""
        return self.speed / max(1, jobs)
