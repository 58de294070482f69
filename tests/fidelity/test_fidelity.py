"""The harness itself: its schedule is seeded and overloads the shop for a while, and a shop that follows the simulation
exactly is told to do so."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.heard import Heard
from helix_projections.simulation.listener import Listener
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import Shop
from tests.fidelity.comparison import Comparison, Figure, compared
from tests.fidelity.schedule import GPUS, LOADS, SLOTS, Visit, schedule
from tests.projections.simulation.floor import WORK

SERVICE = Service(weights_ms=23.25, session_ms=1.75, first_ms=200, serial=False, load_ms=2_000)


def arrivals(visits: list[Visit]) -> list[Arrival]:
    return [
        Arrival(
            at_ms=round(visit.at_s * 1000),
            session=visit.name,
            turn=turn,
            prompt_tokens=line.prompt_chars // 4,
            output_tokens=line.tokens,
            owner=visit.owner,
            think_ms=None if turn == 1 else round(line.think_s * 1000),
            closes_ms=None
            if visit.leaves_s is None or turn < len(visit.lines)
            else round(visit.leaves_s * 1000),
        )
        for visit in visits
        for turn, line in enumerate(visit.lines, start=1)
    ]


def heard(seed: int) -> Heard:
    scenario = Scenario(
        offers=uniform(GPUS, WORK, slots=SLOTS), service=SERVICE, decide_ms=3, start_ms=3, open_ms=2_500
    )
    shop = Shop(scenario, arrivals(schedule(3, seed)))
    shop.run()
    listener = Listener()
    for record in shop.records:
        listener.take(record)
    return listener.heard


def test_a_schedule_is_seeded_and_brings_more_than_can_be_served_for_a_while() -> None:
    visits = schedule(10, 1)
    assert visits == schedule(10, 1) != schedule(10, 2)
    parts = Counter(int(visit.at_s / 120) for visit in visits)
    assert parts[1] > parts[0] > parts[4]
    assert max(LOADS) > 1 > LOADS[-1]
    assert [visit.at_s for visit in visits] == sorted(visit.at_s for visit in visits)


def test_a_shop_that_does_as_the_simulator_says_is_foretold() -> None:
    found = compared(heard(seed=2))
    waits = {figure.name: figure for figure in found.figures}
    assert waits["queued wait p95"].real > 3_000  # people really waited
    assert found.good
    assert all(abs(figure.error) < 0.08 for figure in found.figures if figure.judged)


def test_a_shop_that_was_slower_than_its_log_says_of_it_is_not_foretold() -> None:
    slow = heard(seed=2)
    for said in slow.turns:  # as if the scheduler had slept
        if not said.straight and said.admitted_ms is not None:
            said.admitted_ms += 4_000
    assert not compared(slow).good


def test_the_verdict_is_over_waits_alone() -> None:
    good = Figure(name="queued wait p50", real=100, foretold=114)
    bad, other = replace(good, foretold=80), Figure(name="busy", real=1, foretold=2)
    about = compared(heard(seed=1))

    def verdict(*figures: Figure) -> bool:
        return Comparison(figures=list(figures), fitted=about.fitted, recording=about.recording).good

    assert verdict(good, other)
    assert not verdict(good, bad)
