"""Attention over packed tokens: each row belongs to one session and sees that session's keys only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from helix_es.core.errors import EngineError
from helix_runners.engine.kv import KeyValues

# Registered with AttentionInterface only. A name without a mask function is transformers' own sign for
# "this attention needs no mask": it then skips building one, which on a GPU would wait for the device.
ATTENTION = "helix_packed"


class Span:
    """Rows of one step that continue one session: `rows` tokens from row `first` of the batch."""

    __slots__ = ("_masks", "first", "kv", "rows", "start")

    def __init__(self, kv: KeyValues, first: int, rows: int) -> None:
        self.kv = kv
        self.first = first
        self.rows = rows
        self.start = kv.length
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def oldest(self, window: int | None) -> int:
        """The first position that the span's first row may see through `window`."""
        return 0 if window is None else max(0, self.start + 1 - window)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """(rows, visible positions), 0 or -inf, of `like`'s dtype; None if plain causality is enough.

        Built once a step and shared by the layers that have the same window.
        """
        if window not in self._masks:
            self._masks[window] = self._build(window, like)
        return self._masks[window]

    def _build(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        if self.start == 0 and (window is None or self.rows <= window):
            return None
        oldest = self.oldest(window)
        position = torch.arange(self.start, self.start + self.rows, device=like.device)[:, None]
        key = torch.arange(oldest, self.start + self.rows, device=like.device)[None]
        hidden = key > position
        if window is not None:
            hidden |= key <= position - window
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(
            hidden, float("-inf")
        )


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Sequence[Span],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values, then attend span by span: (tokens, 1, heads, head_dim).

    query: (tokens, heads, 1, head_dim); key, value: (tokens, kv_heads, 1, head_dim). `sliding_window` is
    the layer's own. Raises EngineError for attention with soft caps or sinks, which is not implemented.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise EngineError("the model's attention has soft caps or sinks, which this engine does not compute")
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every transformers attention has one
    tokens, heads, _, head_dim = query.shape
    kv_heads = key.shape[1]
    # one view for each token, made at once: on a CPU, making them one by one costs as much as attending
    fresh = torch.cat((key, value), dim=1).view(tokens, 2, 1, kv_heads, head_dim)
    fresh_rows = fresh.unbind(0)
    query_rows = query.reshape(tokens, 1, kv_heads, heads // kv_heads, head_dim).unbind(0)
    parts = []
    for span in packed:
        cache = span.kv.layers[layer]
        oldest, end = span.oldest(sliding_window), span.start + span.rows
        if span.rows == 1:
            cache.select(3, span.start).copy_(fresh_rows[span.first])
            keys, values = cache.narrow(3, oldest, end - oldest).unbind(0)
            # the heads that share a key head are its query rows, so nothing is repeated in memory
            part = F.scaled_dot_product_attention(query_rows[span.first], keys, values, scale=scaling)
            parts.append(part.view(1, heads, head_dim))
        else:
            rows = slice(span.first, span.first + span.rows)
            cache[:, 0, :, span.start : end] = fresh[rows, :, 0].permute(1, 2, 0, 3)
            keys, values = cache.narrow(3, oldest, end - oldest).unbind(0)
            mask = span.mask(sliding_window, query)
            parts.append(_prefill(query[rows, :, 0], keys, values, mask, scaling))
    return torch.cat(parts)[:, None], None


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Many tokens: key heads are the batch and are expanded over their query heads without a copy."""
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1).reshape(kv_heads, groups, rows, head_dim),
        keys.transpose(0, 1).expand(-1, groups, -1, -1),
        values.transpose(0, 1).expand(-1, groups, -1, -1),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
    )
    return out.reshape(heads, rows, head_dim).transpose(0, 1)


AttentionInterface.register(ATTENTION, packed_attention)
