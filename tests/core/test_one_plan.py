"""What one plan decides counts for what it decides next."""

from __future__ import annotations

from helix_es.core import events as e
from helix_es.core.placement import decide
from tests.core.shop import Shop
from tests.core.test_placement import planned, settle

CHAT = e.Workload("create", "text", "mistral")
PICTURE = e.Workload("create", "image", "sdxl")
TRAIN = e.Workload("finetune", "text", "mistral")


def test_a_gpu_whose_slots_change_is_not_also_taken_for_batch_work() -> None:
    shop = Shop(e.Policy(coefficients={"cpu/mistral": 3}))
    shop.join("g0", 2, [CHAT, TRAIN])
    settle(shop)
    rules = e.Policy(coefficients={"cpu/mistral": 2}, reserved=1)
    shop.append(e.PolicySet(policy=rules), shop.catch_up(shop.live).policy_seq)
    told = [event.gpu for event in planned(shop) if isinstance(event, e.GpuAssigned)]
    assert told == ["g0"], "one decision: a second could never be stored"
    settle(shop)
    assert shop.catch_up(shop.live).fleet.kept == 1, "it follows once the slots are settled"


def test_an_owner_who_waits_for_two_models_gets_no_more_than_the_limit() -> None:
    shop = Shop(e.Policy(slots_per_owner=1))
    shop.join("g0", 1, [CHAT])
    shop.join("g1", 1, [PICTURE])
    settle(shop)
    shop.open("c0", owner="ann", work=CHAT)
    shop.open("p0", owner="ann", work=PICTURE)
    state = shop.catch_up(shop.live)
    plan = [each.event for each in decide(state, state.now_ms)]
    assert [each.session for each in plan if isinstance(each, e.TurnAdmitted)] == ["p0"]
