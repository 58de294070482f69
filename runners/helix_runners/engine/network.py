"""One forward pass of a transformers model over packed tokens of many sessions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

import msgspec
import torch

from helix_es.core.errors import EngineError, Misconfigured
from helix_runners.engine.attention import ATTENTION, Span
from helix_runners.engine.kv import Geometry, KeyValues
from helix_runners.engine.linear import pack_linear_layers
from helix_runners.engine.lora import Adapters
from helix_runners.engine.port import Adapter

# Position codes that depend on the longest sequence of the batch: keys in memory would become wrong.
_ROPE_REFUSED = ("dynamic", "longrope")
_LAYERS_SERVED = ("full_attention", "sliding_attention")
_PROBE_TOKENS = 8
# bf16 noise stays below 2 % of the largest logit; a model computed wrongly differs by about 100 %.
_PROBE_TOLERANCE = 0.1


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The next tokens of one session in a step."""

    kv: KeyValues
    tokens: Sequence[int]
    adapter: str | None = None
    """Key of the adapter that computes them."""
    sample: bool
    """Whether the logits after the last of them are wanted."""


class CausalModel(Protocol):
    """What is used of a transformers causal language model."""

    config: Any  # transformers is untyped
    dtype: torch.dtype
    device: torch.device
    base_model: Any

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        """Plain forward pass."""

    def get_output_embeddings(self) -> Any:
        """The layer from hidden states to logits."""

    def set_attn_implementation(self, name: str) -> None:
        """Choose a registered attention function."""

    def get_memory_footprint(self) -> int:
        """Bytes of parameters and buffers."""


class Network:
    """A model whose attention is ours. Not thread-safe: one thread computes."""

    def __init__(self, model: CausalModel) -> None:
        """Raises Misconfigured if packed attention cannot be right for the model."""
        self.config = model.config.get_text_config()
        _refuse_unserved(self.config)
        self._device = model.device
        with torch.inference_mode():
            expected = _own_logits(model)
            pack_linear_layers(cast(torch.nn.Module, model))
        model.set_attn_implementation(ATTENTION)
        self._adapters = Adapters(cast(torch.nn.Module, model), dtype=model.dtype)
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self.geometry = _geometry(model)
        self.weights_bytes = int(model.get_memory_footprint())
        self._compare(expected)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        """Compute all rows at once, extending each session's keys and values.

        Returns logits, (rows with `sample`, vocabulary) float32, in the order of `batch`.
        Raises whatever torch raises, for example OutOfMemoryError; then no length has changed.
        """
        spans, wanted = [], []
        tokens: list[int] = []
        positions: list[int] = []
        for rows in batch:
            rows.kv.reserve(rows.kv.length + len(rows.tokens))
            spans.append(Span(rows.kv, len(tokens), len(rows.tokens)))
            positions.extend(range(rows.kv.length, rows.kv.length + len(rows.tokens)))
            tokens.extend(rows.tokens)
            if rows.sample:
                wanted.append(len(tokens) - 1)
        self._adapters.select([(rows.adapter, len(rows.tokens)) for rows in batch])
        where = torch.tensor([tokens, positions, wanted + [0] * (len(tokens) - len(wanted))])
        where = where.to(self._device)  # one transfer for the three
        hidden = self._body(
            input_ids=where[0][:, None], position_ids=where[1][:, None], use_cache=False, packed=spans
        ).last_hidden_state
        logits = self._head(hidden[where[2, : len(wanted)], 0]).float()
        for rows in batch:
            rows.kv.commit(len(rows.tokens))
        return cast(torch.Tensor, logits)

    @torch.inference_mode()
    def load_adapter(self, adapter: Adapter, in_use: Collection[str]) -> None:
        """Have `adapter` in memory. Raises EngineError if it does not fit the model or the memory."""
        self._adapters.load(adapter.key, adapter.folder, in_use)

    @property
    def adapters(self) -> int:
        """Adapters in memory."""
        return len(self._adapters)

    def _compare(self, expected: torch.Tensor) -> None:
        """A wrong answer must not go unnoticed: compare prefill and decode with the model's own attention."""
        kv = KeyValues(self.geometry, block_tokens=_PROBE_TOKENS)
        tokens = list(range(_PROBE_TOKENS))
        try:
            first = self.forward([Rows(kv=kv, tokens=tokens[:-1], sample=True)])
            second = self.forward([Rows(kv=kv, tokens=tokens[-1:], sample=True)])
        except (TypeError, RuntimeError, IndexError, AttributeError, EngineError) as error:
            raise Misconfigured(
                f"source: this engine cannot compute a {self.config.model_type} model: {error}"
            ) from error
        difference = (torch.cat((first, second)) - expected).abs().max()
        if difference > _PROBE_TOLERANCE * expected.abs().max():
            raise Misconfigured(
                f"source: packed attention is not exact for a {self.config.model_type} model; "
                "use one of the Llama, Mistral or Qwen2 families"
            )


def _own_logits(model: CausalModel) -> torch.Tensor:
    """(2, vocabulary) float32: after all but the last token, and after the last."""
    tokens = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    return cast(torch.Tensor, model(input_ids=tokens, use_cache=False).logits[0, -2:].float())


def _geometry(model: CausalModel) -> Geometry:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=model.dtype,
        device=model.device,
    )


def _refuse_unserved(config: Any) -> None:
    """Refuse what a short comparison would not show: faults that begin at long contexts."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _ROPE_REFUSED:
        raise Misconfigured(f"source: position code {rope!r} is not served: its keys change with the batch")
    unserved = set(getattr(config, "layer_types", None) or ()) - set(_LAYERS_SERVED)
    if unserved:
        raise Misconfigured(f"source: layers of type {', '.join(sorted(unserved))} are not served")
