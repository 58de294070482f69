"""Linear layers on a CPU: weights laid out beforehand for oneDNN, up to twice as fast; those in four bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# The layout suits steps from one token to hundreds (measured 1 to 128); a hint of 1 would not.
_LAYOUT_ROWS = 16
_FOUR_BIT_ROWS = 32  # outputs in a block of bitsandbytes' own layout for CPUs


class PackedLinear(nn.Module):
    """What nn.Linear computes, to float32 rounding. Inference only; (…, in) to (…, out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _LAYOUT_ROWS)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The operator that torch.compile uses for linear layers on CPUs."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], "")
        return out


Product = Callable[[torch.Tensor], torch.Tensor]


def product(weight: torch.Tensor) -> Product:
    """Return the function from (…, in) to (…, out) that multiplies by `weight`, (out, in), as fast as can be.

    Small products beside oneDNN's go through oneDNN too: a layer of 576 x 576 with an adapter of rank 32 took 98 µs
    so and 148 µs with MKL for the small ones (32 µs without an adapter; 4 rows, two cores).
    """
    if not _helps(weight):
        return lambda values: F.linear(values, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)
    return lambda values: torch.ops.mkldnn._linear_pointwise(values, packed, None, "none", [], "")


def pack_linear_layers(model: nn.Module) -> int:
    """Replace the plain linear layers of a model on a CPU; how many. None where oneDNN cannot help.

    One after the other, so that one layer at most is in memory twice (and an embedding that shares its weight with
    the output layer, which stays). A model that is quantised to be small keeps such a weight once: SmolLM2 in four
    bits would take two thirds more with the second.
    """
    packed = 0
    once = _shared(model) if getattr(model, "is_quantized", False) else set()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # exactly nn.Linear: quantized and adapted layers are subclasses and compute something else
            if type(child) is nn.Linear and _helps(child.weight) and id(child.weight) not in once:
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed


def settle_four_bit_layers(model: nn.Module, dtype: torch.dtype) -> int:
    """Make the four-bit layers of bitsandbytes compute in `dtype`; how many there are.

    On CPUs with AVX512-BF16 they would compute in bfloat16 whatever was asked for, and fail on sizes that their
    layout has no room for: they keep that, 2 to 4 times as fast, where the dtype is bfloat16 and the size fits.
    """
    settled = 0
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None:
            continue
        four_bit: Any = layer  # bitsandbytes is not imported: it may not be installed
        outer, inner = state.shape
        fits = outer % _FOUR_BIT_ROWS == 0 and inner % state.blocksize == 0
        four_bit.compute_dtype = dtype
        if dtype != torch.bfloat16 or not fits:
            four_bit.support_avx512bf16_for_cpu = False
        settled += 1
    return settled


def _shared(model: nn.Module) -> set[int]:
    """Return the ids of the weights that several layers have."""
    times = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return {each for each, count in times.items() if count > 1}


def _helps(weight: torch.Tensor) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not available:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
