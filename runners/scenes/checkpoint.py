"""How far a training is, and its state on disk: weights, moments and random numbers in one safetensors file."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

REPORT_STEPS = 50
"""Steps between two lines on the screen."""
SAVE_STEPS = 300
"""Steps between two checkpoints: two to three minutes of the denoiser."""
WARM_STEPS = 60


class Progress:
    """The steps and the seconds of a training, those of earlier processes included.

    Seconds are processor time by thread: what an idle machine takes, so that a busy one changes when it ends, not what
    comes out.
    """

    def __init__(self, name: str, minutes: float) -> None:
        self._name = name
        self._limit_s = minutes * 60
        self._earlier_s = 0.0
        self._begun_s = _computed_s()
        self._loss: float | None = None
        self.step = 0

    @property
    def seconds(self) -> float:
        """Time spent so far."""
        return self._earlier_s + _computed_s() - self._begun_s

    @property
    def share(self) -> float:
        """How much of the time is spent, 0 to 1."""
        return min(1.0, self.seconds / self._limit_s) if self._limit_s > 0 else 1.0

    def rate(self, peak: float, *, hold: float = 0.0) -> float:
        """Return the learning rate: a short rise, `peak` for a share `hold` of the time, then half a cosine."""
        fallen = max(0.0, self.share - hold) / (1 - hold)
        return (
            peak * min(1.0, (self.step + 1) / WARM_STEPS) * (0.02 + 0.49 * (1 + math.cos(math.pi * fallen)))
        )

    def resume(self, step: int, seconds: float) -> None:
        """Go on from there."""
        self.step, self._earlier_s, self._begun_s = step, seconds, _computed_s()

    def advance(self, loss: float) -> bool:
        """Count a step, say something now and then; return whether a checkpoint is due."""
        self.step += 1
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        if self.step % REPORT_STEPS == 0:
            print(f"{self._name} step {self.step} {self.seconds:.0f} s loss {self._loss:.4f}", flush=True)
        return self.step % SAVE_STEPS == 0


def _computed_s() -> float:
    return time.process_time() / torch.get_num_threads()


def save(path: Path, module: nn.Module, optimiser: Optimizer, progress: Progress) -> None:
    """Write the state whole or not at all."""
    tensors: dict[str, Tensor] = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"moment.{index}.{name}": value for name, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    progressed = json.dumps({"step": progress.step, "seconds": progress.seconds})
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    save_file(
        {name: value.contiguous().clone() for name, value in tensors.items()},
        written,
        {"progress": progressed},
    )
    written.rename(path)


def load(path: Path, module: nn.Module, optimiser: Optimizer, progress: Progress) -> None:
    """Go on from a state that `save` wrote; without one, change nothing."""
    if not path.exists():
        return
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        progressed = json.loads(file.metadata()["progress"])
    module.load_state_dict(
        {n.removeprefix("module."): v for n, v in tensors.items() if n.startswith("module.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("moment."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    torch.set_rng_state(tensors["random"])
    progress.resume(progressed["step"], progressed["seconds"])
    print(f"going on from step {progress.step}", flush=True)
