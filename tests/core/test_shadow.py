"""Other rules beside the ones that a log was made by."""

from __future__ import annotations

from helix_es.core import events as e
from helix_es.core.shadow import Report, Shadow
from tests.core.shop import Shop

IDLE = e.Policy(idle_after_ms=1000)


def beside(records: list[e.Recorded], policy: e.Policy) -> Report:
    shadow = Shadow(policy)
    for record in records:
        shadow.take(record)
    return shadow.report()


def crowded(slots: int, policy: e.Policy) -> Shop:
    """Return a shop whose GPU is full when two more come; the first goes after five seconds."""
    shop = Shop(policy)
    shop.join("box-0", slots)
    runner = shop.runners["box-0"]
    shop.schedule()
    shop.hear(runner)
    for n in range(slots):
        shop.open(f"s{n}", owner=f"o{n}")
    shop.schedule()
    shop.take(runner)
    for name in ("x", "y"):
        shop.open(name, owner=name)
    for _ in range(20):
        shop.now_ms += 250
        shop.schedule()
    shop.close("s0")
    for _ in range(20):
        shop.now_ms += 250
        shop.schedule()
        shop.hear(runner)
        shop.take(runner)
    return shop


def test_the_same_rules_decide_the_same() -> None:
    for shop in (crowded(1, IDLE), crowded(2, IDLE)):
        report = beside(shop.log.records, IDLE)
        for count in report.decisions.values():
            assert (count.same, count.sooner, count.only_live, count.only_shadow) == (count.live, 0, 0, 0)
        assert report.live_wait_ms == report.shadow_wait_ms
        assert report.told == []


def test_more_slots_would_have_admitted_sooner() -> None:
    records = crowded(2, IDLE).log.records
    report = beside(records, e.Policy(idle_after_ms=1000, coefficients={"cpu/mistral": 3}))
    admitted = report.decisions["turn.admitted"]
    assert (admitted.live, admitted.same, admitted.sooner) == (3, 2, 1)
    assert admitted.only_shadow == 0  # y: there is one more slot, not two; then the GPU is seen as full
    assert report.live_wait_ms[-1] - report.shadow_wait_ms[-1] >= 4500
    assert "sooner" in report.told[-1].what


def test_fewer_slots_would_have_let_wait() -> None:
    report = beside(
        crowded(2, IDLE).log.records, e.Policy(idle_after_ms=1000, coefficients={"cpu/mistral": 1})
    )
    admitted = report.decisions["turn.admitted"]
    assert admitted.only_live >= 2
    assert admitted.same == 1


def test_an_owner_at_the_limit_would_not_have_been_admitted() -> None:
    shop = Shop(IDLE)
    shop.join("box-0", 2)
    shop.schedule()
    shop.hear(shop.runners["box-0"])
    for name in ("a", "b"):
        shop.open(name, owner="ann")
    shop.schedule()
    report = beside(shop.log.records, e.Policy(idle_after_ms=1000, slots_per_owner=1))
    assert report.decisions["turn.admitted"].same == 1
    assert report.decisions["turn.admitted"].only_live == 1
    assert "would not have" in report.told[0].what


def test_what_only_the_shadow_wants_is_counted_once_it_stays_so() -> None:
    """With two reserved GPUs the shadow would make the chat GPU a batch one."""
    shop = Shop(IDLE)
    train = e.Workload("finetune", "text", "mistral")
    shop.join("box-0", 2, [e.Workload("create", "text", "mistral"), train])
    shop.schedule()
    shop.hear(shop.runners["box-0"])
    for _ in range(60):
        shop.now_ms += 500
        shop.open(f"s{shop.now_ms}", owner="ann")
        shop.close(f"s{shop.now_ms}")
        shop.schedule()
    report = beside(shop.log.records, e.Policy(idle_after_ms=1000, reserved=1))
    assert report.decisions["gpu.assigned"].only_shadow >= 1


def test_time_alone_brings_a_decision() -> None:
    """A shadow with a shorter patience releases the silent session while nothing is appended."""
    shop = Shop(e.Policy(idle_after_ms=60_000))
    shop.join("box-0", 1)
    runner = shop.runners["box-0"]
    shop.schedule()
    shop.hear(runner)
    shop.open("a", owner="a")
    shop.schedule()
    shop.take(runner)
    shop.finish(runner, "a")
    shop.open("b", owner="b")
    shadow = Shadow(IDLE)
    for record in shop.log.records:
        shadow.take(record)
    shadow.beat(shop.now_ms + 500)
    assert "session.released" not in shadow.report().decisions
    shadow.beat(shop.now_ms + 1250)
    shadow.beat(shop.now_ms + 2000)
    assert shadow.report().decisions["session.released"].only_shadow == 1


def test_what_was_skipped_is_known_and_not_compared() -> None:
    records = crowded(2, IDLE).log.records
    shadow = Shadow(IDLE)
    for record in records[:-3]:
        shadow.skip(record)
    for record in records[-3:]:
        shadow.take(record)
    report = shadow.report()
    assert report.from_seq == len(records) - 2
    assert sum(count.live for count in report.decisions.values()) < 3
    assert all(count.only_live == 0 for count in report.decisions.values())
