"""What is learnt when: every example once an epoch, none that is held out, and all of it from the step alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.params import TrainParams
from helix_runners.finetune.plan import Plan

PLANS = st.builds(
    Plan,
    st.lists(st.integers(1, 3), min_size=2, max_size=30).map(
        lambda counts: [example for example, count in enumerate(counts) for _ in range(count)]
    ),
    st.builds(
        TrainParams,
        epochs=st.integers(1, 4),
        batch_size=st.integers(1, 5),
        gradient_accumulation=st.integers(1, 3),
        held_out=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
        warmup_steps=st.integers(0, 50),
        seed=st.integers(0, 3),
    ),
)


def indexes(plan: Plan, step: int) -> list[int]:
    return [index for batch in plan.batches(step) for index in batch]


@given(PLANS)
def test_every_epoch_learns_each_sequence_once(plan: Plan) -> None:
    for epoch in range(plan.steps // plan.epoch_steps):
        steps = range(epoch * plan.epoch_steps + 1, (epoch + 1) * plan.epoch_steps + 1)
        assert sorted(index for step in steps for index in indexes(plan, step)) == plan.learnt
    assert set(plan.learnt).isdisjoint(plan.held_out)
    assert plan.learnt


@given(PLANS, st.data())
def test_a_step_is_the_same_whatever_was_done_before(plan: Plan, data: st.DataObject) -> None:
    in_order = {step: plan.batches(step) for step in range(1, plan.steps + 1)}
    step = data.draw(st.integers(1, plan.steps))
    assert plan.batches(step) == in_order[step]


@given(PLANS)
def test_the_rate_rises_then_falls_and_is_never_zero(plan: Plan) -> None:
    rates = [plan.rate(step) for step in range(1, plan.steps + 1)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 < rate <= 1e-3 for rate in rates)


def test_an_example_is_held_out_with_all_its_sequences() -> None:
    plan = Plan([0, 0, 1, 1, 2, 2, 3, 3], TrainParams(held_out=0.25))
    assert len(plan.held_out) == 2
    assert len({index // 2 for index in plan.held_out}) == 1


@pytest.mark.parametrize(
    ("examples", "share", "count"),
    [(2, 0.5, 1), (2, 0.01, 1), (3, 0.5, 2), (10, 0, 0), (30, 0.1, 3), (5000, 0.5, 32)],
)
def test_something_is_held_out_if_anything_is_asked_for(examples: int, share: float, count: int) -> None:
    assert len(Plan(range(examples), TrainParams(held_out=share)).held_out) == count


def test_epochs_differ_and_so_do_seeds() -> None:
    plan, other = (Plan(range(40), TrainParams(seed=seed, batch_size=40, held_out=0)) for seed in (0, 1))
    orders = [indexes(plan, 1), indexes(plan, 2), indexes(other, 1)]
    assert len({tuple(order) for order in orders}) == 3


def test_max_steps_ends_it_earlier() -> None:
    params = TrainParams(epochs=3, batch_size=2, held_out=0, max_steps=5)
    assert Plan(range(8), params).steps == 5
    assert Plan(range(2), params).steps == 3


def test_the_rate_is_a_warm_up_and_half_a_cosine() -> None:
    params = TrainParams(epochs=6, batch_size=1, held_out=0, warmup_steps=2, learning_rate=1.0)
    plan = Plan([0], params)
    assert [round(plan.rate(step), 4) for step in range(1, 7)] == [0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]
