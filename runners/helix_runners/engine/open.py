"""The one place where an engine is put together: settings in, a running engine out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import psutil
import torch

from helix_es.cache import cache_dir
from helix_es.core.errors import EngineError, Misconfigured
from helix_runners.engine.multiplexer import Limits, Multiplexer
from helix_runners.engine.network import Network
from helix_runners.engine.packed import PackedEngine, Parts
from helix_runners.engine.prompt import ChatPrompt
from helix_runners.engine.weights import load_weights

GIB = 1 << 30
STEP_TOKENS_CPU = 128  # 2 cores: no stream waits longer than 0.6 s while a long prompt is read
STEP_TOKENS_GPU = 512  # a GPU is not busy with less, and reads this in some 50 ms
CPU_KV_BYTES = 2 * GIB
GPU_USABLE = 0.9  # the rest belongs to fragments and to other processes
GPU_ACTIVATION_BYTES = 3 * GIB // 2  # what a step needs besides weights, keys and values


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an engine that an operator may choose."""

    source: str = "builtin:smollm2"
    """A folder in Hugging Face format, a hub id, or builtin:smollm2."""
    device: str = "cpu"
    """cpu or cuda:<number>."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    quantisation: str | None = None
    """Of the weights: nf4, on a GPU also int8; None: as the source has them."""
    context_tokens: int | None = None
    """Lowers the model's own limit."""
    kv_budget_bytes: int | None = None
    """Memory for keys and values; None: derived from what the device has."""
    step_tokens: int | None = None
    """Tokens computed in one step; None: 128 on a CPU, 512 on a GPU."""
    max_batch: int = 16
    """Generations that run at once; others wait."""
    threads: int | None = None
    """Threads torch computes with on a CPU, for the whole process; None leaves torch's choice."""
    cache_dir: Path | None = None
    """Where converted models are kept; None: HELIX_CACHE_DIR or ~/.cache/helix."""


def open_engine(settings: EngineSettings) -> PackedEngine:
    """Load the model, check that it is computed rightly, start the engine. Blocks for seconds: use a thread.

    Raises Misconfigured, naming the setting, if it cannot work; EngineError if the model cannot be had.
    """
    _refuse_invalid(settings)
    return PackedEngine(partial(_load, settings))


def _load(settings: EngineSettings) -> Parts:
    """Runs in the engine's thread: no other may compute with torch before it, see PackedEngine."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = load_weights(
        settings.source,
        device=settings.device,
        dtype=settings.dtype,
        quantisation=settings.quantisation,
        cache_dir=settings.cache_dir or cache_dir(),
    )
    prompt = ChatPrompt(loaded.tokenizer)
    try:
        network = Network(loaded.model)
    except torch.OutOfMemoryError as error:
        raise EngineError(f"{settings.source} does not fit {settings.device}: {error}") from error
    limits = Limits(
        kv_budget_bytes=settings.kv_budget_bytes
        or derived_kv_bytes(network.geometry.device, network.weights_bytes),
        step_tokens=_step_tokens(settings),
        max_batch=settings.max_batch,
    )
    return Parts(
        multiplexer=Multiplexer(network, limits),
        prompt=prompt,
        context_tokens=min(loaded.context_tokens, settings.context_tokens or loaded.context_tokens),
        ends=loaded.ends,
    )


def derived_kv_bytes(device: torch.device, weights_bytes: int) -> int:
    """Bytes for keys and values that the device can spare. Raises Misconfigured if there are none."""
    if device.type == "cpu":
        return min(CPU_KV_BYTES, psutil.virtual_memory().available // 4)
    total = torch.cuda.get_device_properties(device).total_memory
    spare = int(GPU_USABLE * total) - weights_bytes - GPU_ACTIVATION_BYTES
    if spare <= 0:
        raise Misconfigured(
            f"source: weights of {weights_bytes} bytes leave no room for conversations on {device}, which has "
            f'{total}; use a smaller model, or quantisation = "nf4"'
        )
    return spare


def _step_tokens(settings: EngineSettings) -> int:
    if settings.step_tokens is not None:
        return settings.step_tokens
    on_gpu = torch.device(settings.device).type == "cuda"
    # a large batch must still leave half of a step to prompts
    return max(STEP_TOKENS_GPU if on_gpu else STEP_TOKENS_CPU, 2 * settings.max_batch)


def _refuse_invalid(settings: EngineSettings) -> None:
    for name in ("context_tokens", "kv_budget_bytes", "step_tokens", "max_batch", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise Misconfigured(f"{name}: {value} is not allowed; it must be at least 1")
    if settings.step_tokens is not None and settings.step_tokens <= settings.max_batch:
        raise Misconfigured(
            f"step_tokens: {settings.step_tokens} must exceed max_batch ({settings.max_batch}), "
            "or prompts wait for ever while all others decode"
        )
