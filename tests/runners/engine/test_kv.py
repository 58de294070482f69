"""Keys and values grow in blocks and keep what they hold."""

from __future__ import annotations

import torch

from helix_runners.engine.kv import Geometry, KeyValues

GEOMETRY = Geometry(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def test_growing_keeps_what_is_held() -> None:
    kv = KeyValues(GEOMETRY, block_tokens=4)
    kv.reserve(3)
    written = torch.randn(2, 1, 3, 3, 4)
    for layer in kv.layers:
        layer[..., :3, :] = written
    kv.commit(3)
    kv.reserve(9)
    assert kv.capacity == 12
    assert all(torch.equal(layer[..., :3, :], written) for layer in kv.layers)


def test_bytes_are_counted_in_whole_blocks() -> None:
    kv = KeyValues(GEOMETRY, block_tokens=4)
    assert kv.nbytes == 0
    kv.reserve(5)
    assert kv.nbytes == kv.bytes_for(5) == sum(layer.nbytes for layer in kv.layers) == 8 * 192


def test_cropping_to_nothing_gives_the_memory_back() -> None:
    kv = KeyValues(GEOMETRY, block_tokens=4)
    kv.reserve(8)
    kv.commit(8)
    kv.crop(5)
    assert (kv.length, kv.capacity) == (5, 8)
    kv.crop(9)
    assert kv.length == 5
    kv.crop(0)
    assert (kv.length, kv.nbytes, kv.layers) == (0, 0, [])
