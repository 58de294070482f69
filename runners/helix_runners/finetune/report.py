"""What is told of a training on its way: every step to who watches, and to the log a curve without gap or doubling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from helix_runners.finetune.trainer import Done
from helix_runners.work import Output

DIGITS = 6  # of a loss: what differs beyond is rounding


class Report:
    """Keeps what was measured until a fact has it."""

    def __init__(self, output: Output, steps: int) -> None:
        self._output = output
        self._steps = steps
        self._losses: list[tuple[int, float]] = []
        self._held_out: list[tuple[int, float]] = []
        self._notes: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._begun = time.monotonic()
        self._computed_s = 0.0
        self._tokens = 0
        self._count = 0

    def note(self, **notes: Any) -> None:
        """Tell something once."""
        self._notes |= notes

    def done(self, done: Done, seconds: float) -> None:
        """Take what a step brought, which took that long to compute."""
        self._computed_s += seconds
        self._tokens += done.tokens
        self._count += 1
        loss = round(done.loss, DIGITS)
        self._losses.append((done.step, loss))
        # all that happens on the way, checkpoints for one, will take its time again
        each_s = (time.monotonic() - self._begun) / self._count
        self._last = {
            "loss": loss,
            "learning_rate": float(f"{done.rate:.6g}"),
            "tokens_per_s": round(self._tokens / max(self._computed_s, 1e-9), 1),
            "left_s": round(each_s * (self._steps - done.step), 1),
        }

    def measured(self, step: int, held_out_loss: float) -> None:
        """Take a loss on what is not learnt from."""
        self._held_out.append((step, round(held_out_loss, DIGITS)))

    async def tell(self, step: int, checkpoint: Sequence[str] = ()) -> None:
        """Tell where the training is. Raises NotOurs if nobody wants to know any more."""
        detail: dict[str, Any] = {**self._last, "losses": list(self._losses), **self._notes}
        if self._held_out:
            detail |= {"held_out_loss": self._held_out[-1][1], "held_out_losses": list(self._held_out)}
        if await self._output.step(step, self._steps, detail, checkpoint=checkpoint):
            self._losses.clear()
            self._held_out.clear()
            self._notes.clear()
