"""How pools grow and shrink: one rule at a time."""

from __future__ import annotations

from helix_es.core import events as e
from tests.core.shop import Shop
from tests.core.test_placement import settle

CHAT = e.Workload("create", "text", "mistral")
RULE = e.PoolRule(min=0, max=3, idle_ms=5000, wait_target_ms=1000, workloads=[CHAT], slots={"mistral": 2})
POLICY = e.Policy(idle_after_ms=1000, switch_after_ms=1000, pools={"cloud": RULE})


def sizes(shop: Shop) -> list[tuple[int, str]]:
    return [(r.event.size, r.event.reason) for r in shop.log.records if isinstance(r.event, e.FleetResized)]


def start_gpus(shop: Shop) -> None:
    """What a provider does: as many GPUs as are wanted."""
    pool = shop.catch_up(shop.live).fleet.pools["cloud"]
    for n in range(pool.starting):
        shop.keys += 1
        shop.join(f"c{shop.keys}-{n}", 2, [CHAT], "cpu", "cloud")
    settle(shop)


def test_an_empty_shop_holds_a_request_and_grows_for_it() -> None:
    shop = Shop(POLICY)
    shop.open("s0")
    settle(shop)
    assert sizes(shop)[-1][0] == 1
    assert shop.session("s0").phase == "queued"
    start_gpus(shop)
    assert shop.session("s0").phase == "running"


def test_a_burst_grows_to_the_most_and_everybody_is_served_and_it_shrinks_to_nothing() -> None:
    shop = Shop(POLICY)
    for n in range(200):
        shop.open(f"s{n}")
    settle(shop)
    assert sizes(shop)[-1][0] == 3
    for _ in range(600):
        start_gpus(shop)
        for runner in list(shop.runners.values()):
            for sid in list(runner.running):
                shop.finish(runner, sid)
                shop.close(sid)
        shop.now_ms += 200
        settle(shop)
    assert all(shop.session(f"s{n}").phase == "closed" for n in range(200))
    assert all(shop.session(f"s{n}").turns[0].state == "completed" for n in range(200))
    assert sizes(shop)[-1][0] == 0
    assert not shop.catch_up(shop.live).gpus, "each left when it held nobody"


def test_a_gpu_that_holds_somebody_does_not_leave() -> None:
    shop = Shop(POLICY)
    for n in range(4):
        shop.open(f"s{n}")
    settle(shop)
    start_gpus(shop)
    assert len(shop.catch_up(shop.live).gpus) == 2
    shop.now_ms += 60_000
    settle(shop)
    assert sizes(shop)[-1][0] == 2


def test_a_pool_keeps_its_least_size_and_a_lowered_most_drains_the_rest() -> None:
    rule = e.PoolRule(min=2, max=3, idle_ms=1000, workloads=[CHAT], slots={"mistral": 2})
    shop = Shop(e.Policy(idle_after_ms=1000, pools={"cloud": rule}))
    settle(shop)
    assert sizes(shop)[-1][0] == 2
    start_gpus(shop)
    shop.now_ms += 60_000
    settle(shop)
    assert len(shop.catch_up(shop.live).gpus) == 2
    lower = e.PoolRule(min=0, max=1, idle_ms=60_000_000, workloads=[CHAT], slots={"mistral": 2})
    policy = e.Policy(idle_after_ms=1000, pools={"cloud": lower})
    shop.append(e.PolicySet(policy=policy), shop.catch_up(shop.live).policy_seq)
    settle(shop)
    assert len(shop.catch_up(shop.live).gpus) == 1


def test_gpus_that_are_on_their_way_are_not_asked_for_again() -> None:
    shop = Shop(POLICY)
    for n in range(3):
        shop.open(f"s{n}")
    settle(shop)
    assert sizes(shop)[-1][0] == 2
    shop.now_ms += 60_000
    settle(shop)
    assert [size for size, _ in sizes(shop)] == [2]


def test_the_limit_of_an_owner_bounds_what_the_pool_grows_for() -> None:
    rule = e.PoolRule(max=10, idle_ms=5000, wait_target_ms=0, workloads=[CHAT], slots={"mistral": 2})
    shop = Shop(e.Policy(slots_per_owner=2, pools={"cloud": rule}))
    for n in range(50):
        shop.open(f"s{n}", "ann")
    settle(shop)
    assert sizes(shop)[-1][0] == 1


def test_gpus_that_may_serve_nothing_leave() -> None:
    shop = Shop(POLICY)
    for n in range(5):
        shop.open(f"s{n}")
    settle(shop)
    start_gpus(shop)
    assert len(shop.catch_up(shop.live).gpus) == 3
    none = e.PoolRule(min=0, max=3, idle_ms=1000, workloads=[CHAT], slots={"mistral": 0})
    policy = e.Policy(idle_after_ms=1000, coefficients={"cpu/mistral": 0}, pools={"cloud": none})
    shop.append(e.PolicySet(policy=policy), shop.catch_up(shop.live).policy_seq)
    for _ in range(20):
        for runner in list(shop.runners.values()):
            for sid in list(runner.running):
                shop.finish(runner, sid)
        shop.now_ms += 1000
        settle(shop)
    assert not shop.catch_up(shop.live).gpus


def test_a_pool_does_not_give_away_what_is_kept_for_batch_work() -> None:
    train = e.Workload("finetune", "text", "mistral")
    rule = e.PoolRule(min=0, max=3, idle_ms=1000, workloads=[CHAT, train], slots={"mistral": 2})
    shop = Shop(e.Policy(reserved=1, switch_after_ms=1000, pools={"cloud": rule}))
    for n in range(3):
        shop.join(f"x{n}", 2, [CHAT, train], "cpu", "cloud")
        settle(shop)
    for _ in range(20):
        shop.now_ms += 1000
        settle(shop)
    assert [gpu.purpose for gpu in shop.catch_up(shop.live).gpus.values()] == ["batch"]


def test_a_pool_of_which_one_gpu_never_comes_shrinks_all_the_same() -> None:
    shop = Shop(POLICY)
    for n in range(5):
        shop.open(f"s{n}")
    settle(shop)
    shop.join("c0", 2, [CHAT], "cpu", "cloud")
    for _ in range(60):
        settle(shop)
        for runner in list(shop.runners.values()):
            for sid in list(runner.running):
                shop.finish(runner, sid)
                shop.close(sid)
        shop.now_ms += 500
    assert sizes(shop)[-1][0] == 0
