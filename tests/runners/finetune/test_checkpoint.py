"""One safetensors file holds a training; what is another's or damaged is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helix_es.core.params import TrainParams
from helix_runners.finetune.checkpoint import About, Identity, identity, read, write
from helix_runners.finetune.trainer import Misfit, Tensors

IDENTITY = identity("acme/tiny", "f1", TrainParams())


def about(found: Identity = IDENTITY) -> About:
    return About(identity=found, adapter={"r": 8}, step=20, tokens=7, losses=[4.0, 1.5], held_out=[3.0])


def tensors() -> Tensors:
    return {
        "adapter.a": torch.arange(6.0).reshape(2, 3).T,
        "step.a": torch.tensor(20.0),
        "rng.cpu": torch.get_rng_state(),
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, about(), tensors())
    told, found = read(path, IDENTITY)
    assert told == about()
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], each) for name, each in tensors().items())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (identity("acme/other", "f1", TrainParams()), "model"),
        (identity("acme/tiny", "f2", TrainParams()), "dataset"),
        (identity("acme/tiny", "f1", TrainParams(lora_rank=4)), "params"),
    ],
)
def test_a_checkpoint_of_another_training_is_a_misfit(tmp_path: Path, other: Identity, said: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, about(other), tensors())
    with pytest.raises(Misfit, match=f"another training: {said} differ"):
        read(path, IDENTITY)


def test_all_params_count_also_those_that_are_defaults() -> None:
    assert set(IDENTITY.params) == set(TrainParams.__struct_fields__)


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle", "no header", "odd header"])
def test_what_is_no_checkpoint_is_a_misfit(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path, about(), tensors())
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "pickle":
        torch.save({"a": torch.zeros(1)}, path)
    elif damage == "no header":
        save_file({"a": torch.zeros(1)}, path)
    else:
        save_file({"a": torch.zeros(1)}, path, {"helix": json.dumps({"step": "x"})})
    with pytest.raises(Misfit, match="cannot be read"):
        read(path, IDENTITY)
