"""Many LoRA adapters on one model: each row of a step goes through its own, all of them in two products a layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from helix_es.core.errors import EngineError
from helix_runners.engine.linear import Product, product

BUDGET_BYTES = 512 << 20  # of weights kept: 50 adapters of rank 8 for a 135M model, 6 of rank 16 for a 7B one
SLACK = 4  # adapters that stay in the stack after their last turn, so that a pause does not rebuild it
_PREFIX = "base_model.model."


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is used of peft's adapter_config.json, and what would change the computation and is refused."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter: for each layer, down (rank, in), with the scale in it, and up (out, rank)."""

    rank: int
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    nbytes: int


class Selection:
    """Which adapter each row of the current step uses: (rows, 1, sum of ranks), 1 where a rank is the row's own."""

    __slots__ = ("mask",)

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None


class AdaptedLinear(nn.Module):
    """A linear layer, plus what the selected adapters add. (tokens, 1, in) to (tokens, 1, out)."""

    def __init__(self, base: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.base = base
        self._selection = selection
        self.down: Product | None = None
        self.up: Product | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The base's output, alone while no row of the step has an adapter."""
        out: torch.Tensor = self.base(values)
        mask = self._selection.mask
        if mask is None or self.down is None or self.up is None:
            return out
        return out + self.up(self.down(values) * mask)


class Adapters:
    """The adapters of one model, in memory while they are used. Of one thread."""

    def __init__(self, model: nn.Module, *, dtype: torch.dtype, budget_bytes: int = BUDGET_BYTES) -> None:
        self._model = model
        self._dtype = dtype
        self._budget_bytes = budget_bytes
        self._device = next(model.parameters()).device
        self._loaded: dict[str, Lora] = {}
        """Least recently used first."""
        self._layers: dict[str, AdaptedLinear] = {}
        self._selection = Selection()
        self._stack: list[str] = []

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._loaded)

    def load(self, key: str, folder: Path, in_use: Collection[str]) -> None:
        """Have the adapter in `folder` ready under `key`; those in `in_use` stay.

        Raises EngineError: `adapter_invalid` if it is not one for this model, `adapters_full` if there is no room.
        """
        if key in self._loaded:
            self._loaded[key] = self._loaded.pop(key)
            return
        lora = read_lora(folder, self._dtype, self._device)
        for path in lora.layers:
            self._check(path, lora)
        self._make_room(lora.nbytes, in_use)
        for path in lora.layers:
            self._adapt(path)
        self._loaded[key] = lora

    def select(self, rows: Sequence[tuple[str | None, int]]) -> None:
        """Say for the next pass which adapter (None: none) how many rows in turn use."""
        wanted = dict.fromkeys(key for key, _ in rows if key is not None)
        if not wanted:
            self._selection.mask = None
            return
        if not wanted.keys() <= set(self._stack) or len(self._stack) > len(wanted) + SLACK:
            self._restack(list(wanted))
        starts, width = {}, 0
        for key in self._stack:
            starts[key] = width
            width += self._loaded[key].rank
        mask = torch.zeros(sum(count for _, count in rows), width, dtype=self._dtype)
        first = 0
        for chosen, count in rows:
            if chosen is not None:
                start = starts[chosen]
                mask[first : first + count, start : start + self._loaded[chosen].rank] = 1
            first += count
        self._selection.mask = mask[:, None].to(self._device)

    def _restack(self, wanted: list[str]) -> None:
        """Put the weights of the wanted adapters, and of some used lately, side by side in every layer."""
        lately = [key for key in reversed(self._loaded) if key not in wanted and key in self._stack]
        self._stack = wanted + lately[: max(0, SLACK - len(wanted))]
        for path, layer in self._layers.items():
            if not self._stack:
                layer.down = layer.up = None
                continue
            downs, ups = [], []
            for key in self._stack:
                lora = self._loaded[key]
                down, up = lora.layers.get(path) or self._nothing(layer, lora.rank)
                downs.append(down)
                ups.append(up)
            layer.down, layer.up = product(torch.cat(downs)), product(torch.cat(ups, dim=1))

    def _nothing(self, layer: AdaptedLinear, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What an adapter adds to a layer that it does not change."""
        inner, outer = _size(layer.base)
        down = torch.zeros(rank, inner, dtype=self._dtype, device=self._device)
        return down, torch.zeros(outer, rank, dtype=self._dtype, device=self._device)

    def _make_room(self, need: int, in_use: Collection[str]) -> None:
        held = sum(lora.nbytes for lora in self._loaded.values())
        for key in [key for key in self._loaded if key not in in_use]:
            if held + need <= self._budget_bytes:
                return
            held -= self._loaded.pop(key).nbytes
            if key in self._stack:
                self._restack([each for each in self._stack if each != key])
        if held + need > self._budget_bytes:
            raise EngineError(
                f"an adapter of {need} bytes finds {held} of {self._budget_bytes} bytes in use; try again later",
                code="adapters_full",
            )

    def _check(self, path: str, lora: Lora) -> None:
        """Raise EngineError unless the model has a linear layer of the right size at `path`."""
        layer = self._layers.get(path)
        try:
            base = layer.base if layer is not None else self._model.get_submodule(path)
        except AttributeError:
            raise _invalid(f"the model has no layer {path}") from None
        down, up = lora.layers[path]
        if _size(base) != (down.shape[1], up.shape[0]):
            raise _invalid(f"layer {path} does not have the size that the adapter was trained for")

    def _adapt(self, path: str) -> None:
        if path in self._layers:
            return
        parent, _, name = path.rpartition(".")
        holder = self._model.get_submodule(parent)
        layer = AdaptedLinear(cast(nn.Module, getattr(holder, name)), self._selection)
        setattr(holder, name, layer)
        self._layers[path] = layer
        if self._stack:  # the others add nothing here
            empty = [self._nothing(layer, self._loaded[key].rank) for key in self._stack]
            layer.down = product(torch.cat([down for down, _ in empty]))
            layer.up = product(torch.cat([up for _, up in empty], dim=1))


def _size(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer of whatever class; (0, 0) of anything else."""
    return int(getattr(layer, "in_features", 0)), int(getattr(layer, "out_features", 0))


def _invalid(why: str) -> EngineError:
    return EngineError(f"the adapter does not fit the model: {why}", code="adapter_invalid")


def read_lora(folder: Path, dtype: torch.dtype, device: torch.device) -> Lora:
    """Read an adapter as peft saves it. Raises EngineError (`adapter_invalid`) for what is not plain LoRA."""
    try:
        config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=LoraConfig)
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        raise _invalid(f"its files cannot be read: {error}") from error
    _refuse_unserved(config)
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in tensors:
        path, mark, end = name.removeprefix(_PREFIX).rpartition(".lora_A.weight")
        if not mark:
            if not name.endswith(".lora_B.weight"):
                raise _invalid(f"{name} is not part of a plain LoRA")
            continue
        down, up = tensors[name], tensors.get(f"{_PREFIX}{path}.lora_B.weight")
        if end or up is None or down.ndim != 2 or down.shape[0] != config.r or up.shape[1:] != (config.r,):
            raise _invalid(f"{path} does not have rank {config.r}")
        scaled = (down * config.scale).to(device=device, dtype=dtype)
        layers[path] = (scaled, up.to(device=device, dtype=dtype))
    nbytes = sum(each.nbytes for pair in layers.values() for each in pair)
    return Lora(rank=config.r, layers=layers, nbytes=nbytes)


def _refuse_unserved(config: LoraConfig) -> None:
    if config.peft_type != "LORA" or config.r < 1:
        raise _invalid(f"it is {config.peft_type} of rank {config.r}, only LoRA is served")
    unserved = (
        config.use_dora,
        config.fan_in_fan_out,
        config.lora_bias,
        config.bias != "none",
        config.modules_to_save,
        config.rank_pattern,
        config.alpha_pattern,
    )
    names = (
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
    )
    for name, value in zip(names, unserved, strict=True):
        if value:
            raise _invalid(f"{name} is set, which is not served")
