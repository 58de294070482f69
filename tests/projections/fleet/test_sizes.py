"""What each pool should be and has, read from the fold."""

from __future__ import annotations

from helix_es.core import events as e
from helix_projections.fleet.sizes import Order, orders
from tests.projections.fleet.facts import Shop

MOST = {"burst": 4}


def test_a_pool_whose_size_nobody_said_is_left_alone() -> None:
    shop = Shop()
    shop.joined("n-burst-0", "burst")
    assert orders(shop.state(), MOST) == {}


def test_a_pool_that_the_rules_know_has_their_least_until_another_size_is_said() -> None:
    shop = Shop()
    shop.say(e.PolicySet(policy=e.Policy(pools={"burst": e.PoolRule(min=1, max=4)})), "policy")
    assert orders(shop.state(), MOST) == {"burst": Order(size=1, gpus={})}
    shop.resized("burst", 0)
    assert orders(shop.state(), MOST)["burst"].size == 0


def test_the_last_size_said_is_the_one_that_counts() -> None:
    shop = Shop()
    shop.resized("burst", 3)
    shop.resized("burst", 1)
    assert orders(shop.state(), MOST) == {"burst": Order(size=1, gpus={})}


def test_a_size_of_nought_is_an_order_too() -> None:
    shop = Shop()
    shop.resized("burst", 0)
    assert orders(shop.state(), MOST)["burst"].size == 0


def test_no_fact_makes_a_pool_larger_than_the_configuration_allows() -> None:
    shop = Shop()
    shop.resized("burst", 10_000)
    assert orders(shop.state(), MOST)["burst"].size == 4


def test_pools_of_others_are_none_of_our_business() -> None:
    shop = Shop()
    shop.resized("theirs", 3)
    assert orders(shop.state(), MOST) == {}


def test_a_gpu_serves_then_drains_then_has_drained_then_is_gone() -> None:
    shop = Shop()
    shop.resized("burst", 2)
    shop.joined("n-0", "default")  # of another pool
    shop.joined("n-burst-0", "burst")
    shop.joined("n-burst-1", "burst")
    shop.assigned("n-burst-0")
    shop.seated("s1", "n-burst-0")
    assert orders(shop.state(), MOST)["burst"].gpus == {"n-burst-0": "serving", "n-burst-1": "serving"}
    shop.assigned("n-burst-0", leaving=True)
    assert orders(shop.state(), MOST)["burst"].gpus["n-burst-0"] == "draining"
    shop.released("s1", "n-burst-0")
    assert orders(shop.state(), MOST)["burst"].gpus["n-burst-0"] == "drained"
    shop.left("n-burst-0")
    assert orders(shop.state(), MOST)["burst"].gpus == {"n-burst-1": "serving"}
