"""Pipelines come from folders and single files, in safetensors only, and what is wrong with a source is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from helix_es.core.errors import EngineError, HelixError, Misconfigured
from helix_runners.image.weights import PARTS, load_pipeline
from tests.runners.image.engines import CLEAN
from tests.runners.image.pipelines import save_single_file

pytestmark = CLEAN


def load(source: Path | str, dtype: str = "auto", device: str = "cpu") -> Any:
    return load_pipeline(str(source), device=device, dtype=dtype)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def single(tiny_folder: Path, tmp_path: Path) -> Path:
    """A file with the weights alone."""
    (tmp_path / "single").mkdir()
    path = tmp_path / "single" / "sd_xl_base_1.0.safetensors"
    save_single_file(load(tiny_folder), path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def described(tiny_folder: Path, to: Path) -> None:
    """Write how the parts are built, without their weights, into `to`."""
    shutil.copytree(tiny_folder, to, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_folder_is_loaded_in_the_wanted_precision(
    dtype: str, precision: torch.dtype, tiny_folder: Path
) -> None:
    pipeline = load(tiny_folder, dtype)
    assert {getattr(pipeline, part).dtype for part in PARTS} == {precision}
    assert not any(weight.requires_grad for part in PARTS for weight in getattr(pipeline, part).parameters())


@pytest.mark.parametrize("beside", [True, False])
def test_a_single_file_is_the_same_model(
    beside: bool, single: Path, tiny_folder: Path, offline: None
) -> None:
    described(tiny_folder, single.with_suffix("") if beside else single.parent)
    from_file, from_folder = load(single), load(tiny_folder)
    for part in PARTS:
        expected = getattr(from_folder, part).state_dict()
        found = getattr(from_file, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert from_file.scheduler.config == from_folder.scheduler.config


def test_a_single_file_without_a_description_is_refused_offline(single: Path, offline: None) -> None:
    with pytest.raises(EngineError) as refused:
        load(single)
    assert refused.value.code == "model_unavailable"


def test_files_marked_as_half_precision_are_found(folder: Path) -> None:
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load(folder).unet.dtype == torch.float32


def test_pickles_are_never_loaded(folder: Path, single: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(Misconfigured, match=r"unet has no \*\.safetensors"):
        load(folder)
    with pytest.raises(Misconfigured, match="not a"):
        load(single.rename(single.with_suffix(".ckpt")))


def test_code_of_a_folder_is_never_run(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["evil", "Net"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(EngineError):
        load(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("builtin:nothing", "builtin:scenes"),
        ("/no/such/folder", "no file or folder"),
        ("~/no/such/folder", "no file or folder"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        load(source)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"no model_index\.json"):
        load(tmp_path)


def test_a_name_that_the_hub_has_not_is_unavailable(offline: None) -> None:
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(EngineError, match="nobody/nothing") as refused:
            load("nobody/nothing", dtype)
        assert refused.value.code == "model_unavailable"


@pytest.mark.parametrize("damage", ["weights", "index", "config", "tokenizer", "limit", "refiner", "missing"])
def test_a_damaged_folder_is_refused_with_its_name(damage: str, folder: Path) -> None:
    match damage:
        case "weights":
            path = folder / "vae" / "diffusion_pytorch_model.safetensors"
            path.write_bytes(path.read_bytes()[:1000])
        case "index":
            (folder / "model_index.json").write_text("{")
        case "config":
            (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        case "tokenizer":
            shutil.rmtree(folder / "tokenizer")
        case "limit":
            (folder / "tokenizer_2" / "tokenizer_config.json").write_text("{}")
        case "missing":
            shutil.rmtree(folder / "scheduler")
        case "refiner":
            index = json.loads((folder / "model_index.json").read_text())
            index["text_encoder"] = [None, None]
            (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(HelixError, match=str(folder)):
        load(folder)


def test_a_device_or_dtype_that_is_not_there_is_named(tiny_folder: Path) -> None:
    with pytest.raises(Misconfigured, match="cuda:7"):
        load(tiny_folder, device="cuda:7")
    with pytest.raises(Misconfigured, match="float8"):
        load(tiny_folder, "float8")
