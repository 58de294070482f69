"""Shares of a step: decodes first, prompts in equal parts, nothing left lying."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_runners.engine.schedule import share_out

NEEDS = st.lists(st.integers(1, 300), max_size=16)


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    assert share_out([1, 1000, 1, 1000], 102) == [1, 50, 1, 50]


def test_a_short_prompt_leaves_its_rest_to_the_long_ones() -> None:
    assert share_out([1000, 10, 1000], 100) == [45, 10, 45]


@settings(deadline=None)
@given(needs=NEEDS, budget=st.integers(0, 400))
def test_the_budget_is_kept_and_used_up(needs: list[int], budget: int) -> None:
    granted = share_out(needs, budget)
    assert sum(granted) == min(budget, sum(needs))
    assert all(0 <= got <= need for got, need in zip(granted, needs, strict=True))


@settings(deadline=None)
@given(needs=NEEDS, budget=st.integers(17, 400))
def test_every_decode_moves_and_no_prompt_is_favoured(needs: list[int], budget: int) -> None:
    granted = share_out(needs, budget)
    assert all(got == 1 for got, need in zip(granted, needs, strict=True) if need == 1)
    prompts = [(got, need) for got, need in zip(granted, needs, strict=True) if need > 1]
    assert all(got > 0 for got, _ in prompts)
    unsatisfied = [got for got, need in prompts if got < need]
    if unsatisfied:
        assert max(got for got, _ in prompts) - min(unsatisfied) <= 1
