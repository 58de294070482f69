"""Drawing tokens: the distribution is right, and a seed repeats a turn whoever shares the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_es.core.errors import EngineError
from helix_runners.engine.multiplexer import Multiplexer
from helix_runners.engine.network import Network
from helix_runners.engine.port import Sampling
from helix_runners.engine.sampling import Sampler, choose
from tests.runners.engine.models import drain, limits, llama, prompt_of, turn


def test_the_same_request_gives_the_same_tokens_whoever_shares_the_batch() -> None:
    def sampled(others: int) -> list[int]:
        multiplexer = Multiplexer(Network(llama()), limits(budget_tokens=1 << 30, step_tokens=24))
        one = turn("s", prompt_of(40), 30, temperature=0.9, top_p=0.9, seed=11)
        for number in range(others):
            multiplexer.submit(
                turn(f"o{number}", prompt_of(20 + number, 5), 40, temperature=1.0, seed=number)
            )
        multiplexer.submit(one)
        drain(multiplexer)
        return one.generated

    alone = sampled(0)
    assert sampled(3) == alone
    assert sampled(6) == alone


def test_another_seed_gives_another_answer() -> None:
    logits = torch.zeros(500)
    draws = [
        [Sampler(Sampling(temperature=1.0, seed=seed)).draw(logits) for _ in range(3)] for seed in range(9)
    ]
    assert len({tuple(draw) for draw in draws}) > 1


def test_draws_follow_the_distribution() -> None:
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    counts = torch.bincount(torch.tensor([sampler.draw(weights.log()) for _ in range(4000)]), minlength=4)
    assert torch.allclose(counts / 4000, weights, atol=0.03)


def test_temperature_sharpens() -> None:
    weights = torch.tensor([0.6, 0.4])
    sampler = Sampler(Sampling(temperature=0.5, seed=3))
    ones = sum(sampler.draw(weights.log()) for _ in range(4000)) / 4000
    assert abs(ones - 0.16 / 0.52) < 0.03  # squares of 0.6 and 0.4


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0.001, 1), min_size=2, max_size=30),
    top_p=st.floats(0.01, 0.99),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_top_p_draws_from_the_smallest_set_that_is_likely_enough(
    weights: list[float], top_p: float, seed: int
) -> None:
    likely = torch.softmax(torch.tensor(weights).log(), -1)
    token = Sampler(Sampling(temperature=1.0, top_p=top_p, seed=seed)).draw(likely.log())
    more_likely = likely[likely > likely[token]].sum()
    assert more_likely < top_p + 1e-5


def test_top_p_reaches_beyond_the_head_when_the_distribution_is_flat() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.99, seed=1))
    assert max(sampler.draw(torch.zeros(5000)) for _ in range(100)) > 1024


@settings(deadline=None)
@given(temperature=st.floats(1e-6, 1e-3))
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float) -> None:
    assert Sampler(Sampling(temperature=temperature)).draw(torch.tensor([1.0, 50.0, -3.0])) == 1


def test_greedy_and_drawn_rows_mix() -> None:
    logits = torch.tensor([[0.0, 9.0], [99.0, 0.0]])
    assert choose(logits, [Sampler(Sampling()), Sampler(Sampling(temperature=1.0))]) == [1, 0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=0),
        Sampling(temperature=-0.1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=0.0),
        Sampling(top_p=1.1),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(sampling: Sampling) -> None:
    with pytest.raises(EngineError, match=r"max_tokens|temperature|top_p") as refused:
        Sampler(sampling)
    assert refused.value.code == "invalid_sampling"
