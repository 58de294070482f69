"""A cold start is a loading: a GPU that is given other work on the model it has makes none."""

from __future__ import annotations

from helix_es.core import events as e
from tests.core.shop import Shop
from tests.projections.analytics.kit import filled, in_memory, messages, rows

GPU = e.GpuId("box-0")


def given(shop: Shop, purpose: e.Purpose, model: str, load_ms: int) -> None:
    """The GPU is given something, and answers after `load_ms` of loading."""
    told = e.GpuAssigned(
        gpu=GPU,
        incarnation="i1",
        model=model,
        type="text",
        purpose=purpose,
        slots=1,
        reason="",
        decided_seq=0,
        decided_at_ms=0,
    )
    seq = shop.append(told, len(shop.log.records))
    assert seq is not None
    shop.now_ms += load_ms + 5
    ready = e.GpuReady(gpu=GPU, incarnation="i1", model=model, load_ms=load_ms, assigned_seq=seq)
    assert shop.append(ready, seq) is not None


def test_what_is_in_memory_already_is_no_cold_start() -> None:
    shop = Shop()
    works = [
        e.Workload("create", "text", "mistral"),
        e.Workload("finetune", "text", "mistral"),
        e.Workload("create", "text", "tiny"),
    ]
    shop.append(
        e.GpuJoined(
            gpu=GPU,
            incarnation="i1",
            kind="l4-24",
            memory_total_bytes=1,
            workloads=works,
            slots={},
            pool="default",
        ),
        0,
    )
    given(shop, "chat", "mistral", 733)
    given(shop, "batch", "mistral", 0)
    given(shop, "chat", "tiny", 40)
    given(shop, "chat", "mistral", 701)
    store = filled(in_memory(), [messages(shop.log.records)])
    found = rows(store, "SELECT model, purpose, load_ms FROM cold_starts ORDER BY seq")
    assert [tuple(each.values()) for each in found] == [
        ("mistral", "chat", 733),
        ("tiny", "chat", 40),
        ("mistral", "chat", 701),
    ]
    state = shop.catch_up(shop.live)
    assert (state.gpus[GPU].load_ms, state.fleet.load_ms) == (701, {"mistral": 701, "tiny": 40})
