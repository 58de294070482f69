"""Which GPU serves what: one rule at a time."""

from __future__ import annotations

from helix_es.core import events as e
from tests.core.shop import Shop
from tests.core.test_placement import planned, settle

CHAT = e.Workload("create", "text", "mistral")
PICTURE = e.Workload("create", "image", "sdxl")
TRAIN = e.Workload("finetune", "text", "mistral")
BOTH = [CHAT, PICTURE]
ANY = [CHAT, TRAIN]


def shop_of(policy: e.Policy | None = None, **gpus: list[e.Workload]) -> Shop:
    shop = Shop(policy or e.Policy(idle_after_ms=1000, switch_after_ms=1000, starve_after_ms=5000))
    for name, works in gpus.items():
        shop.join(name, 2, works)
        settle(shop)
    return shop


def serving(shop: Shop) -> dict[str, tuple[str | None, str | None]]:
    state = shop.catch_up(shop.live)
    return {name: (gpu.purpose, gpu.model) for name, gpu in state.gpus.items()}


def later(shop: Shop, ms: int) -> None:
    shop.now_ms += ms
    settle(shop)


def finish_all(shop: Shop) -> None:
    for runner in shop.runners.values():
        for sid in list(runner.running):
            assert shop.finish(runner, sid)


def test_gpus_that_could_do_the_same_cover_every_model() -> None:
    shop = shop_of(g0=BOTH, g1=BOTH)
    assert serving(shop) == {"g0": ("chat", "mistral"), "g1": ("chat", "sdxl")}


def test_a_vacant_gpu_is_given_to_the_model_that_somebody_waits_for_but_not_at_once() -> None:
    shop = shop_of(g0=BOTH)
    shop.open("s0", work=PICTURE)
    settle(shop)
    assert serving(shop) == {"g0": ("chat", "mistral")}, "it has been vacant for a moment only"
    later(shop, 1000)
    assert serving(shop) == {"g0": ("chat", "sdxl")}
    assert shop.session("s0").phase == "running"


def test_a_gpu_is_not_taken_from_those_who_wait_for_it_themselves() -> None:
    shop = shop_of(g0=BOTH, g1=[CHAT])
    for n in range(8):
        shop.open(f"c{n}")
    settle(shop)
    shop.open("p0", work=PICTURE)
    later(shop, 4000)
    assert serving(shop)["g0"] == ("chat", "mistral")


def test_no_model_starves_behind_another_that_is_always_busy() -> None:
    shop = shop_of(g0=BOTH, g1=[CHAT])
    for n in range(8):
        shop.open(f"c{n}")
    settle(shop)
    shop.open("p0", work=PICTURE)
    later(shop, 5000)
    state = shop.catch_up(shop.live)
    assert state.gpus["g0"].draining
    assert state.gpus["g0"].next == PICTURE
    assert len(state.gpus["g0"].sessions) == 2, "nobody is cut off"
    finish_all(shop)
    later(shop, 1000)
    settle(shop)
    assert shop.session("p0").phase == "running"


def test_a_gpu_whose_sessions_all_fell_silent_is_given_to_those_who_wait_for_another_model() -> None:
    shop = shop_of(g0=BOTH)
    shop.open("c0")
    settle(shop)
    finish_all(shop)
    shop.open("p0", work=PICTURE)
    later(shop, 900)
    assert shop.session("c0").phase == "idle"
    later(shop, 200)
    later(shop, 10)
    assert shop.session("c0").phase == "released"
    assert shop.session("p0").phase == "running"


def test_reserved_gpus_are_never_given_to_chats() -> None:
    policy = e.Policy(reserved=1, switch_after_ms=1000)
    shop = shop_of(policy, g0=ANY, g1=ANY)
    assert sorted(purpose for purpose, _ in serving(shop).values()) == ["batch", "chat"]
    for n in range(9):
        shop.open(f"c{n}")
    later(shop, 60_000)
    assert sorted(purpose for purpose, _ in serving(shop).values()) == ["batch", "chat"]
    shop.open("t0", work=TRAIN)
    settle(shop)
    assert shop.session("t0").phase == "running", "a fine-tune starts at once"


def test_a_lost_reservation_is_restored_from_the_chats() -> None:
    policy = e.Policy(reserved=1, switch_after_ms=1000, idle_after_ms=1000)
    shop = shop_of(policy, g0=ANY, g1=ANY)
    batch = next(name for name, (purpose, _) in serving(shop).items() if purpose == "batch")
    shop.lose(batch)
    del shop.runners[batch]
    settle(shop)
    assert [purpose for purpose, _ in serving(shop).values()] == ["batch"]


def test_fine_tunes_borrow_idle_chat_gpus_and_give_them_back_with_a_checkpoint() -> None:
    policy = e.Policy(switch_after_ms=1000, idle_after_ms=1000, yield_ms=2000)
    shop = shop_of(policy, g0=[CHAT, TRAIN])
    shop.open("t0", work=TRAIN)
    later(shop, 1000)
    assert shop.session("t0").phase == "running"
    shop.open("c0")
    settle(shop)
    runner = shop.runners["g0"]
    assert runner.yielding == {"t0"}
    shop.give_way(runner, "t0")
    settle(shop)
    assert shop.session("c0").phase == "running"
    found = shop.session("t0")
    assert (found.phase, found.turns[0].checkpoint) == ("queued", ["c"])
    assert not shop.catch_up(shop.live).seats["t0"].strikes, "to give way is no failure"


def test_a_fine_tune_that_makes_no_checkpoint_in_time_is_moved_all_the_same() -> None:
    policy = e.Policy(switch_after_ms=1000, yield_ms=2000)
    shop = shop_of(policy, g0=[CHAT, TRAIN])
    shop.open("t0", work=TRAIN)
    later(shop, 1000)
    shop.open("c0")
    settle(shop)
    later(shop, 1999)
    assert shop.session("t0").phase == "running"
    later(shop, 1)
    assert shop.session("c0").phase == "running"


def test_what_a_reservation_made_chats_wait_is_recorded() -> None:
    policy = e.Policy(reserved=1, idle_after_ms=1000)
    shop = shop_of(policy, g0=ANY, g1=ANY)
    for n in range(3):
        shop.open(f"c{n}")
    settle(shop)
    shop.now_ms += 700
    finish_all(shop)
    later(shop, 1000)
    last = [r.event for r in shop.log.records if isinstance(r.event, e.TurnAdmitted)][-1]
    assert (last.session, last.waited_ms, last.reservation_ms) == ("c2", 1700, 1700)


def test_a_lowered_coefficient_drains_and_cuts_nobody_off() -> None:
    shop = shop_of(e.Policy(idle_after_ms=1000, coefficients={"cpu/mistral": 2}), g0=[CHAT])
    shop.open("s0")
    shop.open("s1")
    settle(shop)
    state = shop.catch_up(shop.live)
    shop.append(
        e.PolicySet(policy=e.Policy(idle_after_ms=1000, coefficients={"cpu/mistral": 1})), state.policy_seq
    )
    settle(shop)
    gpu = shop.catch_up(shop.live).gpus["g0"]
    assert (gpu.slots, len(gpu.sessions)) == (1, 2)
    finish_all(shop)
    later(shop, 1000)
    assert sorted(shop.session(sid).phase for sid in ("s0", "s1")) == ["idle", "released"]


def test_a_gpu_that_ran_out_of_memory_holds_fewer_and_the_turn_is_moved() -> None:
    shop = shop_of(None, g0=[CHAT])
    shop.open("s0")
    shop.open("s1")
    settle(shop)
    assert shop.give_back(shop.runners["g0"], "s1", "out_of_memory")
    settle(shop)
    state = shop.catch_up(shop.live)
    assert state.gpus["g0"].slots == 1
    assert state.seats["s1"].phase == "queued"
    assert state.seats["s1"].strikes == ["g0: out_of_memory: no more"]
    shop.join("g1", 2, [CHAT])
    settle(shop)
    assert shop.session("s1").gpu == "g1"


def test_a_turn_that_fails_with_three_gpus_is_given_up_with_its_errors() -> None:
    shop = shop_of(None, g0=[CHAT])
    shop.open("s0")
    for _ in range(3):
        settle(shop)
        assert shop.session("s0").phase == "running"
        assert shop.give_back(shop.runners["g0"], "s0", "engine_broken")
    settle(shop)
    turn = shop.session("s0").turns[0]
    assert turn.state == "failed"
    assert turn.error is not None
    assert turn.error.code == "poison_turn"
    assert turn.error.message.count("engine_broken") == 3


def test_a_turn_that_would_rather_fail_than_wait_does() -> None:
    shop = shop_of(None, g0=[CHAT])
    for n in range(2):
        shop.open(f"s{n}")
    settle(shop)
    shop.open("late", max_wait_ms=1500)
    later(shop, 1499)
    assert shop.session("late").phase == "queued"
    later(shop, 1)
    error = shop.session("late").turns[0].error
    assert error is not None
    assert error.code == "wait_exceeded"


def test_an_owner_at_the_limit_is_passed_over_and_delays_nobody() -> None:
    shop = shop_of(e.Policy(slots_per_owner=1, idle_after_ms=1000), g0=[CHAT])
    for n in range(500):
        shop.open(f"a{n}", "ann")
    shop.open("b0", "bob")
    settle(shop)
    assert shop.session("b0").phase == "running"
    assert shop.session("a0").phase == "running"
    assert shop.session("a1").phase == "queued"
    shop.close("a0")
    settle(shop)
    assert shop.session("a1").phase == "running"


def test_the_plan_keeps_to_the_limit_within_itself() -> None:
    shop = Shop(e.Policy(slots_per_owner=2))
    shop.join("g0", 8, [CHAT])
    settle(shop)
    for n in range(5):
        shop.open(f"a{n}", "ann")
    admitted = [x.session for x in planned(shop) if isinstance(x, e.TurnAdmitted)]
    assert admitted == ["a0", "a1"]


def test_chats_do_not_take_what_is_kept_for_batch_work_even_while_another_drains_for_them() -> None:
    policy = e.Policy(reserved=1, switch_after_ms=1000, yield_ms=60_000)
    shop = shop_of(policy, g0=ANY, g1=ANY)
    shop.open("t0", work=TRAIN)
    shop.open("t1", work=TRAIN)
    later(shop, 1000)
    later(shop, 10)
    assert [shop.session(sid).phase for sid in ("t0", "t1")] == ["running", "running"]
    for n in range(3):
        shop.open(f"c{n}")
    for _ in range(20):
        later(shop, 500)
    yielding = [sid for runner in shop.runners.values() for sid in runner.yielding]
    assert len(yielding) == 1, "one was borrowed; the other is kept"


def test_a_model_that_takes_long_to_load_serves_before_the_gpu_is_given_on() -> None:
    shop = Shop(e.Policy(idle_after_ms=1000, switch_after_ms=1000, starve_after_ms=5000))
    shop.join("g0", 1, BOTH, load_ms=20_000)
    shop.open("c0")
    shop.open("p0", work=PICTURE)
    for _ in range(300):
        later(shop, 500)
        finish_all(shop)
    assert [shop.session(sid).turns[0].state for sid in ("c0", "p0")] == ["completed", "completed"]


def test_a_turn_that_was_admitted_and_lost_its_gpu_does_not_starve_behind_another_model() -> None:
    shop = shop_of(None, g0=BOTH, g1=BOTH)
    assert serving(shop) == {"g0": ("chat", "mistral"), "g1": ("chat", "sdxl")}
    for n in range(4):
        shop.open(f"p{n}", work=PICTURE)
    settle(shop)
    shop.open("c0")
    shop.schedule()
    assert shop.session("c0").phase == "admitted"
    shop.lose("g0")
    del shop.runners["g0"]
    later(shop, 5000)
    finish_all(shop)
    later(shop, 1000)
    later(shop, 10)
    assert shop.session("c0").phase == "running"


def test_a_gpu_that_could_not_load_a_model_is_not_asked_to_again_at_once() -> None:
    shop = shop_of(None, g0=BOTH)
    shop.open("p0", work=PICTURE)
    later(shop, 1000)
    gpu = shop.catch_up(shop.live).gpus["g0"]
    left = e.GpuLeft(gpu=gpu.gpu, incarnation=gpu.incarnation, failed=PICTURE)
    shop.append(left, gpu.last_seq)
    shop.join("g0", 2, BOTH)
    settle(shop)
    assert serving(shop)["g0"] == ("chat", "mistral")
    later(shop, 5_000)
    assert serving(shop)["g0"] == ("chat", "mistral")
    later(shop, 6_000)
    assert serving(shop)["g0"] == ("chat", "sdxl"), "it is tried again"
