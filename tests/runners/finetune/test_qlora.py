"""QLoRA: the base in four bits, on a CPU too; it leaves the memory when its fine-tune is over."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from helix_es.jetstream.files import Files
from helix_runners.finetune.base import Base
from helix_runners.finetune.trainer import Trainer
from helix_runners.finetune.work import FinetuneWork
from tests.runners.finetune.parts import Recorder, adapter, dataset, job, stored

pytestmark = pytest.mark.anyio


def four_bit_layers() -> int:
    gc.collect()
    return sum(type(each) is Linear4bit for each in gc.get_objects())


async def test_an_adapter_is_learnt_on_four_bits_and_goes_on_exactly(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[int] = []
    advance = Trainer.advance

    def counting(trainer: Trainer) -> Any:
        layers.append(four_bit_layers())
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", counting)
    params: dict[str, Any] = {"load_in_4bit": True, "max_steps": 4, "checkpoint_steps": 2}
    data, told, again = await stored(files, dataset()), Recorder(), Recorder()
    outcome = await work.perform(job(data, **params), told)
    assert outcome.error is None
    assert min(layers) == 3 * 7
    assert four_bit_layers() == 0
    made = await adapter(files, outcome)
    assert any(each.abs().max() > 0 for name, each in made.items() if "lora_B" in name)
    first = next(each.checkpoint for each in told.told if each.checkpoint)
    await work.perform(job(data, first, **params), again)
    assert [step for step, _ in again.losses] == [3, 4]
    for (_, loss), (_, wanted) in zip(again.losses, told.losses[2:], strict=True):
        assert loss == pytest.approx(wanted, abs=1e-5)


async def test_a_plain_fine_tune_after_it_has_the_plain_base(files: Files, work: FinetuneWork) -> None:
    alone, after = Recorder(), Recorder()
    await work.perform(job(await stored(files, dataset())), alone)
    await work.perform(job(await stored(files, dataset()), load_in_4bit=True, max_steps=1), Recorder())
    await work.perform(job(await stored(files, dataset())), after)
    assert after.losses == alone.losses
    base: Base = work._tools.base
    assert base._model.dtype == torch.float32
