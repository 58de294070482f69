"""How many GPUs each pool should have and which it has, read from the fold of the log."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from helix_es.core.floor import Gpu
from helix_es.core.occupancy import Occupancy
from helix_projections.fleet.provider import Standing


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one pool should be, and is."""

    size: int
    gpus: dict[str, Standing]


def orders(state: Occupancy, most: Mapping[str, int]) -> dict[str, Order]:
    """Return the orders of the pools in `most` (pool -> most GPUs of it) that the scheduler decides about.

    The log may say more than this machine's configuration allows: then that is what is ordered.
    """
    found = {}
    for name, allowed in most.items():
        size = _size(state, name)
        if size is not None:
            found[name] = Order(size=max(0, min(size, allowed)), gpus={})
    for gpu in state.gpus.values():
        if gpu.pool in found:
            found[gpu.pool].gpus[gpu.gpu] = standing(gpu)
    return found


def _size(state: Occupancy, name: str) -> int | None:
    """Return the size that was said last; until then the least by the rules, None if they do not know the pool.

    The scheduler says nothing while it is content with that least, which may be none.
    """
    pool = state.fleet.pools.get(name)
    if pool is not None and pool.resized_ms:
        return pool.size
    rule = state.policy.pools.get(name)
    return None if rule is None else rule.min


def standing(gpu: Gpu) -> Standing:
    """Return where `gpu` is in its life."""
    if not gpu.leaving:
        return "serving"
    return "draining" if gpu.sessions else "drained"
