"""Which token comes next: greedy, or drawn with temperature and top_p from a generator of the turn's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helix_es.core.errors import EngineError
from helix_runners.engine.port import Sampling

_HEAD_TOKENS = 1024  # sorting these is enough for nearly every top_p and 20 times cheaper than the vocabulary
_SEED_BITS = 2**64 - 1  # what torch.Generator takes


class Sampler:
    """Draws the tokens of one turn; its numbers depend on the seed alone, never on who shares the batch."""

    def __init__(self, sampling: Sampling) -> None:
        """Raises EngineError (`invalid_sampling`) if a parameter is outside its range."""
        _refuse_invalid(sampling)
        self.greedy = sampling.temperature == 0
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        # on the CPU on every device: the same seed then gives the same draws everywhere
        self._generator = torch.Generator("cpu").manual_seed(sampling.seed & _SEED_BITS)

    def draw(self, logits: torch.Tensor) -> int:
        """A token of `logits`, (vocabulary,) float32: inverse of the cumulative distribution at one number."""
        uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        # the maximum goes first: a small temperature must not overflow
        weights = torch.softmax((logits - logits.max()) / self._temperature, dim=-1)
        if self._top_p >= 1.0:
            return _invert(weights, uniform)
        ordered, tokens = weights.topk(min(_HEAD_TOKENS, weights.numel()))
        if ordered.sum() < self._top_p:
            ordered, tokens = weights.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        nucleus = ordered[before < self._top_p]
        return int(tokens[_invert(nucleus, uniform)])


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row of `logits`, (samplers, vocabulary) float32."""
    chosen: list[int] = logits.argmax(-1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.greedy:
            chosen[row] = sampler.draw(logits[row])
    return chosen


def _invert(weights: torch.Tensor, uniform: float) -> int:
    cumulative = weights.double().cumsum(0)
    index = torch.searchsorted(cumulative, cumulative[-1:] * uniform, right=True)
    return min(int(index), weights.numel() - 1)  # rounding may reach the very end


def _refuse_invalid(sampling: Sampling) -> None:
    wrong = None
    if sampling.max_tokens < 1:
        wrong = f"max_tokens is {sampling.max_tokens}, it must be at least 1"
    elif not 0 <= sampling.temperature < float("inf"):
        wrong = f"temperature is {sampling.temperature}, it must be 0 or more"
    elif not 0 < sampling.top_p <= 1:
        wrong = f"top_p is {sampling.top_p}, it must be above 0 and at most 1"
    if wrong:
        raise EngineError(wrong, code="invalid_sampling")
