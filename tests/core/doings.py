"""Logs that a small shop's people and machines make by doing what hypothesis tells them."""

from __future__ import annotations

from hypothesis import strategies as st

from helix_es.core import events as e
from tests.core.shop import WORK, Shop

TRAINS = e.Workload("finetune", "text", "mistral")
OTHER = e.Workload("create", "image", "sdxl")
WORKS = (WORK, WORK, TRAINS, OTHER)
GPUS = ("box-0", "box-1", "box-2")
OWNERS = ("ann", "bob", "cyd")

DOINGS = (
    "open",
    "say",
    "cancel",
    "close",
    "schedule",
    "work",
    "finish",
    "join",
    "lose",
    "wait",
    "rules",
    "rubbish",
)

doings = st.lists(
    st.tuples(
        st.sampled_from((*DOINGS, "open", "open", "say", "say", "finish", "finish", "wait")),
        st.integers(0, 11),
    ),
    min_size=30,
    max_size=60,
)
"""What is done, and by or to whom."""


def shop_of(done: list[tuple[str, int]]) -> Shop:
    """Return the shop after all that; its log is what they made."""
    shop = Shop(e.Policy(reserved=1, idle_after_ms=2000, slots_per_owner=0))
    opened: list[str] = []
    for gpu in GPUS[:2]:
        shop.join(gpu, 2, [WORK, TRAINS, OTHER])
    for what, n in done:
        _do(shop, opened, what, n)
        if n % 3:  # else whoever is fast acts on what the scheduler has not seen
            shop.schedule()
            _work(shop)
    return shop


def _do(shop: Shop, opened: list[str], what: str, n: int) -> None:
    gpu = GPUS[n % len(GPUS)]
    match what:
        case "open":
            opened.append(f"s{len(opened)}")
            shop.open(opened[-1], OWNERS[n % 3], int(n > 9), WORKS[n % 4])
        case "say" | "cancel" | "close" if opened:
            {"say": shop.say, "cancel": shop.cancel, "close": shop.close}[what](opened[n % len(opened)])
        case "schedule":
            shop.schedule()
        case "work":
            _work(shop)
        case "finish":
            for runner in shop.runners.values():
                for sid in list(runner.running)[: 1 + n % 3]:
                    shop.finish(runner, sid)
        case "join" if gpu not in shop.catch_up(shop.live).gpus:
            shop.join(gpu, 1 + n % 3, [WORK, TRAINS, OTHER])
        case "lose":
            shop.lose(gpu)
        case "wait":
            shop.now_ms += 500 * n
        case "rules":
            state = shop.catch_up(shop.live)
            shop.append(e.PolicySet(policy=e.Policy(reserved=n % 3, slots_per_owner=n % 4)), state.policy_seq)
        case "rubbish" if opened:
            shop.log.store_raw(f"session.{opened[n % len(opened)]}.turn.completed.box-0", b"\x00")


def _work(shop: Shop) -> None:
    """Every runner hears what it is told, and begins what it has room for."""
    for runner in list(shop.runners.values()):
        if not runner.left:
            shop.hear(runner)
    for runner in list(shop.runners.values()):
        while runner.ready and shop.take(runner):
            pass
    shop.now_ms += 10


def step(shop: Shop, passed_ms: int = 100) -> None:
    """Time passes; the scheduler decides; runners hear, and take what they have room for."""
    shop.now_ms += passed_ms
    for _ in range(3):
        shop.schedule()
        for runner in list(shop.runners.values()):
            shop.hear(runner)
            while runner.ready and shop.take(runner):
                pass
