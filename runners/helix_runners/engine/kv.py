"""Keys and values of one session: one tensor a layer, grown in blocks, cropped and dropped."""

from __future__ import annotations

import msgspec
import torch

BLOCK_TOKENS = 256  # SmolLM2 in fp32: 12 MB a block; smaller blocks copy more often, larger ones waste more


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """What one token occupies, and where."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values that one token needs over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class KeyValues:
    """`length` tokens are held; `layers[i]` is (2, 1, kv_heads, capacity, head_dim), keys first.

    The 1 is the batch that attention functions expect: a view less for each session, layer and step.
    """

    def __init__(self, geometry: Geometry, *, block_tokens: int = BLOCK_TOKENS) -> None:
        self._geometry = geometry
        self._block_tokens = block_tokens
        self.layers: list[torch.Tensor] = []
        self.capacity = 0
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated, which is what the budget counts."""
        return self.capacity * self._geometry.token_bytes

    def bytes_for(self, tokens: int) -> int:
        """Bytes that holding `tokens` takes, rounded up to whole blocks."""
        return self._rounded(tokens) * self._geometry.token_bytes

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens`. Layer by layer, so that only one layer is ever in memory twice."""
        if tokens <= self.capacity:
            return
        capacity = self._rounded(tokens)
        shape = self._geometry
        for index in range(shape.layers):
            grown = torch.empty(
                (2, 1, shape.kv_heads, capacity, shape.head_dim), dtype=shape.dtype, device=shape.device
            )
            if index < len(self.layers):
                grown[..., : self.length, :] = self.layers[index][..., : self.length, :]
                self.layers[index] = grown
            else:
                self.layers.append(grown)
        self.capacity = capacity

    def commit(self, tokens: int) -> None:
        """The next `tokens` positions were written in every layer."""
        self.length += tokens

    def crop(self, tokens: int) -> None:
        """Keep the first `tokens` positions; keeping none gives the memory back."""
        self.length = min(self.length, tokens)
        if self.length == 0:
            self.drop()

    def drop(self) -> None:
        """Hold nothing, free everything."""
        self.layers = []
        self.capacity = 0
        self.length = 0

    def _rounded(self, tokens: int) -> int:
        blocks = -(-tokens // self._block_tokens)
        return blocks * self._block_tokens
