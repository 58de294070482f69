"""A tiny model in a folder, datasets, jobs, and an `Output` that keeps what it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load

from helix_es.core.catalogue import Model
from helix_es.core.events import SessionId, Workload
from helix_es.core.history import Session, Turn
from helix_es.jetstream.files import Files
from helix_runners.finetune.work import FinetuneWork
from helix_runners.work import Job, Outcome
from tests.runners.engine.models import byte_tokenizer, llama

NAME = "acme/tiny"
PARAMS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "held_out": 0.2,
}
EXAMPLES = 10  # 2 held out, 8 learnt from: 4 steps an epoch
STEPS = 8
TINY = Workload("finetune", "text", "tiny")


def tiny(folder: Path) -> Model:
    """Write a random model; the same weights every time."""
    llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return Model(name=NAME, source=str(folder), context_tokens=256)


def row(number: int) -> dict[str, Any]:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    return {
        "messages": [
            {"role": "user", "content": f"Say {words[number % 7]} {'please ' * (number % 3)}"},
            {"role": "assistant", "content": f"{words[number % 7]}!"},
        ]
    }


def dataset(count: int = EXAMPLES) -> bytes:
    return b"".join(json.dumps(row(number)).encode() + b"\n" for number in range(count))


async def stored(files: Files, data: bytes) -> str:
    return await files.put(data, owner="ann", name="a.jsonl", media="application/jsonl", purpose="dataset")


def job(dataset: str | None, checkpoint: Sequence[str] = (), *, session: str = "s1", **params: Any) -> Job:
    turn = Turn(turn=1, state="running", prompt="", checkpoint=list(checkpoint), attempt=1, queued_ms=0)
    state = Session(
        session=SessionId(session),
        phase="running",
        mode="finetune",
        model="tiny",
        owner="ann",
        dataset=dataset,
        name="toy",
        turns=(turn,),
    )
    return Job(state=state, params={**PARAMS, **params})


class Told(msgspec.Struct, frozen=True):
    """One call of `step`."""

    step: int
    steps: int
    detail: dict[str, Any]
    checkpoint: list[str]
    kept: bool


class Recorder:
    """An `Output`: every `every`th step becomes a fact, and each with a checkpoint. `at` is called at each step."""

    def __init__(self, every: int = 1, at: Callable[[int], None] = lambda step: None) -> None:
        self.every = every
        self.at = at
        self.told: list[Told] = []
        self.signs = 0
        """How often it was said that the turn moves."""

    async def say(self, text: str) -> None:
        raise AssertionError("a fine-tune says nothing")

    async def step(
        self,
        step: int,
        steps: int,
        detail: Mapping[str, Any] | None = None,
        *,
        preview: bytes = b"",
        checkpoint: Sequence[str] = (),
    ) -> bool:
        # as it would be in the log
        told = json.loads(msgspec.json.encode(detail or {}))
        kept = bool(checkpoint) or len(self.told) % self.every == self.every - 1
        self.told.append(Told(step, steps, told, list(checkpoint), kept))
        self.at(step)
        return kept

    def alive(self) -> None:
        self.signs += 1

    @property
    def facts(self) -> list[Told]:
        return [each for each in self.told if each.kept]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """The curve that the log holds."""
        return [(step, loss) for fact in self.facts for step, loss in fact.detail["losses"]]

    @property
    def held_out(self) -> list[tuple[int, float]]:
        return [(step, loss) for fact in self.facts for step, loss in fact.detail.get("held_out_losses", [])]

    @property
    def checkpoint(self) -> list[str]:
        """What the log would give to the next attempt."""
        return [each.checkpoint for each in self.told if each.checkpoint][-1]


async def content(files: Files, file: str) -> bytes:
    return b"".join([piece async for piece in files.read(file)])


async def adapter(files: Files, outcome: Outcome) -> dict[str, torch.Tensor]:
    return load(await content(files, outcome.files[0]))


async def ready(files: Files, model: Model) -> FinetuneWork:
    work = FinetuneWork(files, device="cpu", threads=1)
    await work.load(TINY, model)
    return work
