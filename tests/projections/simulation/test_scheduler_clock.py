"""Looks that are left out, since they can bring nothing, change nothing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation import scheduler
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.offer import Offer, uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.scheduler import BEAT_MS, Scheduler
from helix_projections.simulation.shop import Shop
from helix_projections.simulation.traces import merged
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals

SMALL = e.Workload("create", "text", "smollm2")
TUNE = e.Workload("finetune", "text", "mistral")


class Restless(Scheduler):
    """Looks at every beat while somebody waits."""

    def _next_ms(self, now_ms: int) -> int | None:
        if not (self._state.door.waiting or self._state.fleet.over):
            return None
        return now_ms - now_ms % BEAT_MS + BEAT_MS if now_ms < 3_600_000 else None


def facts(
    scenario: Scenario, turns: list[Arrival], kind: type[Scheduler]
) -> list[tuple[int, e.AnyEvent | None]]:
    shop = Shop(scenario, turns)
    shop._scheduler = kind(shop.state, shop.clock, shop.append, scenario.decide_ms)
    shop.run()
    return [(record.at_ms, record.event) for record in shop.records]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decide_ms", [0, 4])
def test_beats_that_are_left_out_would_have_brought_nothing(seed: int, decide_ms: int) -> None:
    mixed = [
        Offer(
            gpu=e.GpuId(f"g{n}"),
            kind="a100-80",
            workloads=[WORK, SMALL, TUNE],
            slots={"mistral": 2, "smollm2": 3},
        )
        for n in range(3)
    ]
    offers = mixed if seed % 2 else uniform(2, WORK, slots=2)
    small = [
        replace(each, session=f"x{each.session}", workload=SMALL) for each in arrivals(seed + 9, 15, 1500)
    ]
    tunes = [
        Arrival(at_ms=n * 20_000, session=f"t{n}", turn=1, work_ms=30_000, workload=TUNE) for n in range(3)
    ]
    patience = [
        replace(each, max_wait_ms=9_000 if int(each.session[1:]) % 3 == 0 else None)
        for each in arrivals(seed, 40, 700)
    ]
    turns = list(merged(patience, small, tunes)) if seed % 2 else patience
    policy = e.Policy(idle_after_ms=2_500, starve_after_ms=5_000, slots_per_owner=2 if seed == 2 else 0)
    scenario = Scenario(policy=policy, offers=offers, owners=3, open_ms=OPEN_MS, decide_ms=decide_ms)
    assert facts(scenario, turns, Scheduler) == facts(scenario, turns, Restless)


def test_it_looks_for_an_hour_and_then_gives_up() -> None:
    state, clock = Occupancy(), Clock()
    looks = []
    queued = e.TurnQueued(
        session=e.SessionId("s"),
        turn=1,
        mode="create",
        type="text",
        model="m",
        owner="ann",
        prompt="",
        max_wait_ms=None,
    )
    state.apply(e.Recorded(1, 0, "", queued))
    state.deadlines.add((10**12, "s"))  # so that it must look
    looking = Scheduler(state, clock, lambda event: 0, 0)
    looking.look()
    while clock.step():
        looks.append(clock.now_ms)
        looking.look()
    assert looks[:3] == [250, 500, 750]
    assert len(looks) < 1000  # ever more seldom
    assert scheduler.HOPELESS_MS <= looks[-1] < scheduler.HOPELESS_MS * 1.1
