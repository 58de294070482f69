"""A diffusion pipeline into memory: a folder, one file, a hub id, or the one that comes with Helix."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from helix_es.core.errors import EngineError, Misconfigured
from helix_runners.engine.weights import chosen_device, chosen_dtype

BUILTIN_SCENES = "builtin:scenes"
SCENES = Path(__file__).parent / "scenes"
SUFFIX = ".safetensors"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
HALF = "fp16"  # how files of half the size are marked


def load_pipeline(source: str, *, device: str, dtype: str) -> Any:
    """Load `source`: a folder in diffusers format, a single *.safetensors file, a hub id, or `builtin:scenes`.

    dtype: float32, bfloat16, float16, or auto (float32 on a CPU; on a GPU bfloat16, float16 before sm80).
    Weights are read from safetensors only, never from pickles. Raises Misconfigured if an argument is wrong;
    EngineError if the weights cannot be had or read, or do not fit the device.
    """
    place = chosen_device(device)
    precision = chosen_dtype(dtype, place)
    _silence()
    try:
        pipeline = _opened(source, precision)
        _check(pipeline)
        pipeline.to(place)
    except torch.OutOfMemoryError as error:
        raise EngineError(f"{source} does not fit {device}: {error}", code="out_of_memory") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        # diffusers says in all these ways that files are missing, damaged or of another kind of model
        raise EngineError(
            f"cannot load {source}: {error}; give a folder in diffusers format or a single {SUFFIX} file of "
            f"Stable Diffusion XL, download it first with `hf download {source}`, or use {BUILTIN_SCENES}",
            code="model_unavailable",
        ) from error
    for part in PARTS:
        getattr(pipeline, part).requires_grad_(False).eval()
    return pipeline


def _check(pipeline: Any) -> None:
    """Raise ValueError for what loads, but cannot work."""
    for part in PARTS:
        if getattr(pipeline, part) is None:
            raise ValueError(f"it has no {part}: is it a refiner?")
    for suffix in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{suffix}")
        config = getattr(pipeline, f"text_encoder{suffix}").config
        # where files are missing, transformers makes an empty tokenizer without a word
        if tokenizer is None or 2 * len(tokenizer) < config.vocab_size:
            raise ValueError(f"its tokenizer{suffix} does not know the words of its text_encoder{suffix}")
        if tokenizer.model_max_length > config.max_position_embeddings:
            raise ValueError(f"its tokenizer{suffix} does not say how long a prompt may be")


def _silence() -> None:
    """A service writes logs, not bars, and prompts that are cut are not its log's business."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _opened(source: str, precision: torch.dtype) -> Any:
    if source == BUILTIN_SCENES:
        return _from_folder(SCENES, precision)
    if source.startswith("builtin:"):
        raise Misconfigured(f"source: {source} is not known; the built-in model is {BUILTIN_SCENES}")
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path, precision)
    if path.is_dir():
        return _from_folder(path, precision)
    if source.startswith(("/", ".", "~")):
        raise Misconfigured(f"source: there is no file or folder {source}")
    return _from_hub(source, precision)


def _from_folder(folder: Path, precision: torch.dtype) -> Any:
    if not (folder / "model_index.json").is_file():
        raise Misconfigured(
            f"source: {folder} has no model_index.json; give a folder in diffusers format, or the path of a "
            f"single *{SUFFIX} file"
        )
    variant = None
    for part in PARTS:
        names = [each.name for each in (folder / part).glob(f"*{SUFFIX}*")]
        if not names:
            raise Misconfigured(
                f"source: {folder / part} has no *{SUFFIX}; pickled weights (*.bin, *.ckpt) can run code and are "
                "never loaded: convert them with save_pretrained(safe_serialization=True)"
            )
        if all(f".{HALF}" in name for name in names):
            variant = HALF
    return _from_pretrained(str(folder), precision, local_files_only=True, variant=variant)


def _from_hub(name: str, precision: torch.dtype) -> Any:
    options = {"local_files_only": constants.HF_HUB_OFFLINE}
    if precision != torch.float32:
        with suppress(OSError, ValueError):  # not every repository has such files, and no two say so alike
            return _from_pretrained(name, precision, variant=HALF, **options)
    return _from_pretrained(name, precision, **options)


def _from_pretrained(name: str, precision: torch.dtype, **options: Any) -> Any:
    kind: Any = StableDiffusionXLPipeline
    return kind.from_pretrained(name, dtype=precision, use_safetensors=True, add_watermarker=False, **options)


def _from_file(path: Path, precision: torch.dtype) -> Any:
    """One file holds weights only. How the parts are built is read from its own folder, from the folder of its
    name beside it, or else from the hub's description of SDXL."""
    if path.suffix != SUFFIX:
        raise Misconfigured(
            f"source: {path} is not a *{SUFFIX} file; pickled weights (*.bin, *.ckpt) can run code and are never loaded"
        )
    described = [
        folder for folder in (path.parent, path.with_suffix("")) if (folder / "model_index.json").is_file()
    ]
    options: dict[str, Any] = {"local_files_only": constants.HF_HUB_OFFLINE}
    if described:
        options = {"config": str(described[0]), "local_files_only": True}
    return StableDiffusionXLPipeline.from_single_file(
        str(path), dtype=precision, add_watermarker=False, **options
    )
