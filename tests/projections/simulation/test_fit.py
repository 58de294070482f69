"""The service model that was simulated is found again in the log of the simulation."""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from helix_es.core import events as e
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.fit import fit_heard
from helix_projections.simulation.fitted import Fitted
from helix_projections.simulation.listener import Listener
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import Shop
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals

KEY = "a100-80/mistral"
TOGETHER = Service(
    weights_ms=20.0,
    session_ms=2.0,
    prefill_tokens_per_s=5000.0,
    first_ms=150.0,
    first_session_ms=12.0,
    serial=False,
    load_ms=7_000,
)


def records(service: Service, turns: list[Arrival], **delays: int) -> list[e.Recorded]:
    scenario = Scenario(offers=uniform(3, WORK, slots=5), service=service, open_ms=OPEN_MS, **delays)  # type: ignore[arg-type]
    shop = Shop(scenario, turns)
    shop.run()
    return shop.records


def fitted(log: list[e.Recorded], default: Service | None = None) -> Fitted:
    listener = Listener()
    for record in log:
        listener.take(record)
    return fit_heard(listener.heard, default or Service(load_ms=1))


@pytest.mark.parametrize(
    "service", [Service(), TOGETHER], ids=["one prompt after the other", "prompts together"]
)
def test_a_simulated_service_is_found_again(service: Service) -> None:
    found = fitted(records(service, arrivals(1, sessions=250, gap_ms=250)))
    got = found.services[KEY]
    assert got.serial == service.serial
    assert got.load_ms == service.load_ms
    assert got.prefill_tokens_per_s == pytest.approx(service.prefill_tokens_per_s, rel=0.02)
    assert got.weights_ms == pytest.approx(service.weights_ms, rel=0.02)
    assert got.session_ms == pytest.approx(service.session_ms, rel=0.02)
    assert got.first_ms == pytest.approx(service.first_ms, abs=2)  # whole milliseconds
    assert got.first_session_ms == pytest.approx(service.first_session_ms, abs=0.5)
    note = found.notes[KEY]
    assert note.turns > 400
    assert note.total_error is not None
    assert note.total_error < 0.01
    assert not note.defaults


def test_noise_and_accidents_hardly_move_it() -> None:
    random, log = Random(1), []
    for record in records(TOGETHER, arrivals(2, sessions=250, gap_ms=250)):
        if isinstance(record.event, e.TurnCompleted) and record.event.first_token_ms is not None:
            first = record.event.first_token_ms
            noisy = (
                round(first * random.uniform(0.9, 1.1)) if random.random() > 0.02 else min(9_000, first * 20)
            )
            record = replace(
                record, event=replace(record.event, first_token_ms=min(noisy, record.event.total_ms))
            )
        log.append(record)
    got = fitted(log).services[KEY]
    assert got.weights_ms == pytest.approx(20, rel=0.1)
    assert got.first_ms == pytest.approx(150, rel=0.15)
    assert got.prefill_tokens_per_s == pytest.approx(5000, rel=0.15)


def test_delays_of_scheduler_and_start_are_found() -> None:
    found = fitted(records(Service(), arrivals(1, sessions=60, gap_ms=400), decide_ms=0, start_ms=11))
    assert found.start_ms == 11


def test_what_a_log_does_not_tell_is_the_defaults_and_said() -> None:
    default = Service(weights_ms=3.0, load_ms=123)
    found = fitted(records(Service(), arrivals(1, sessions=3, gap_ms=400)), default)
    assert found.services[KEY] == replace(default, load_ms=15_000)
    assert "weights_ms" in found.notes[KEY].defaults
    assert "for want of data" in found.lines()[0]


def test_prompts_that_are_all_alike_do_not_tell_how_fast_they_are_read() -> None:
    turns = [
        Arrival(at_ms=n * 700, session=f"s{n}", turn=1, prompt_tokens=40, output_tokens=40 + n % 9)
        for n in range(80)
    ]
    found = fitted(records(replace(TOGETHER, prefill_tokens_per_s=8000.0), turns))
    assert "prefill_tokens_per_s" in found.notes[KEY].defaults
    assert found.services[KEY].prefill_tokens_per_s == 8000
    assert found.services[KEY].first_ms == pytest.approx(150, abs=2)


def test_a_crowd_that_never_changes_does_not_tell_whose_part_of_a_step_is_whose() -> None:
    turns = [
        Arrival(at_ms=n * 4000, session=f"s{n}", turn=1, prompt_tokens=40, output_tokens=40 + n % 9)
        for n in range(40)
    ]
    found = fitted(records(Service(), turns))
    got = found.services[KEY]
    assert "session_ms / weights_ms" in found.notes[KEY].defaults
    assert got.weights_ms + got.session_ms == pytest.approx(7.63, rel=0.02)


def test_a_log_without_gpus_fits_nothing() -> None:
    assert fitted([]).services == {}
