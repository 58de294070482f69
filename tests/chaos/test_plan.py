"""The plan of faults and the visits follow from the seed alone."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.chaos.plan import COUNT, DECK, FAULTS, faults
from tests.chaos.visits import OWNERS, visit


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_comes_once_before_any_comes_twice(seed: int) -> None:
    first = list(islice(faults(seed), DECK))
    found = {(fault.action, fault.kind, fault.role != "") for fault in first}
    assert found == {(action, kind, leading) for action, kind, leading, _ in FAULTS}


def test_a_seed_gives_the_same_plan_again_and_another_gives_another() -> None:
    plan = list(islice(faults(1), 50))
    assert plan == list(islice(faults(1), 50))
    assert plan != list(islice(faults(2), 50))


def test_faults_are_within_what_there_is() -> None:
    for fault in islice(faults(3), 200):
        assert 0 <= fault.index < COUNT[fault.kind]
        assert 2.0 <= fault.after_s <= 4.0
        assert fault.lasts_s <= 10.0
        assert fault.words


def test_a_visit_depends_on_its_number_and_on_no_other_visit() -> None:
    assert visit(1, 7) == visit(1, 7)
    assert visit(1, 7) != visit(2, 7)


def test_the_crowd_is_mixed() -> None:
    crowd = [visit(1, number) for number in range(600)]
    assert {each.owner for each in crowd} == set(OWNERS)
    assert {each.model for each in crowd} == {"mistral", "smollm2", "sdxl", "scenes"}
    assert {each.mode for each in crowd} == {"create", "finetune"}
    assert {each.closing for each in crowd} == {"never", "after", "midway"}
    assert {len(each.steps) for each in crowd} == {1, 2, 3, 4}
    steps = [step for each in crowd for step in each.steps]
    assert any(step.cancel_after_s is not None for step in steps)
    assert any(step.max_wait_s is not None for step in steps)
    assert any(step.drop_after is not None for step in steps)
