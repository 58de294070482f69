"""What is learnt at which step, and how fast: derived from the seed and the step alone, so that any runner goes on."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from helix_es.core.params import TrainParams

# All of them are computed at each checkpoint, which must not take longer than the steps between two.
MOST_HELD_OUT = 32


class Plan:
    """The course of a fine-tune over numbered sequences."""

    def __init__(self, examples: Sequence[int], params: TrainParams) -> None:
        """`examples`: of which example each sequence is. An example is either learnt from or held out, never both."""
        self._params = params
        held = _held_out(sorted(set(examples)), params)
        self.learnt = [index for index, example in enumerate(examples) if example not in held]
        self.held_out = [index for index, example in enumerate(examples) if example in held]
        self._per_step = params.batch_size * params.gradient_accumulation
        self.epoch_steps = math.ceil(len(self.learnt) / self._per_step)
        self.steps = min(
            params.epochs * self.epoch_steps, params.max_steps or params.epochs * self.epoch_steps
        )
        """Optimiser steps, the last one's number."""
        self._order: tuple[int, list[int]] = (-1, [])

    def batches(self, step: int) -> list[list[int]]:
        """Return the sequences of `step`, 1 to `steps`, in the batches that are computed at once."""
        epoch, position = divmod(step - 1, self.epoch_steps)
        if self._order[0] != epoch:
            order = list(self.learnt)
            random.Random(f"{self._params.seed}:{epoch}").shuffle(order)
            self._order = epoch, order
        chosen = self._order[1][position * self._per_step :][: self._per_step]
        return in_batches(chosen, self._params.batch_size)

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`: a linear warm-up, then half a cosine that would end at zero."""
        params = self._params
        if step <= params.warmup_steps:
            return params.learning_rate * step / params.warmup_steps
        done = (step - 1 - params.warmup_steps) / max(1, self.steps - params.warmup_steps)
        return params.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def in_batches(indexes: Sequence[int], size: int) -> list[list[int]]:
    """Return `indexes` in order, at most `size` together."""
    return [list(indexes[start : start + size]) for start in range(0, len(indexes), size)]


def _held_out(examples: Sequence[int], params: TrainParams) -> set[int]:
    """Return the examples to measure on: at least one if any are asked for, and one is always left to learn."""
    if not params.held_out:
        return set()
    count = min(len(examples) - 1, MOST_HELD_OUT, max(1, round(params.held_out * len(examples))))
    return set(random.Random(f"{params.seed}:held-out").sample(examples, count))
