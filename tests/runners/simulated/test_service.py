"""The model of service and what simulated turns say: plain functions."""

from __future__ import annotations

from random import Random

from helix_runners.simulated.service import Service, jittered
from helix_runners.simulated.words import MOST_TOKENS, answer, token_count, words

SERVICE = Service(first_token_ms=200, tokens_per_s=40.0, step_ms=500)


def test_a_gpu_for_itself_is_as_fast_as_was_said() -> None:
    assert SERVICE.first_token_s(10, 1) == 0.2
    assert SERVICE.decode_rate(1) == 40.0
    assert SERVICE.step_s(1) == 0.5


def test_a_crowd_makes_each_slower_and_all_together_faster() -> None:
    rates = [SERVICE.decode_rate(sessions) for sessions in range(1, 17)]
    assert rates == sorted(rates, reverse=True)
    together = [rate * sessions for sessions, rate in enumerate(rates, 1)]
    assert together == sorted(together)


def test_a_long_prompt_takes_longer_to_read() -> None:
    assert SERVICE.first_token_s(512, 1) == SERVICE.first_token_s(1, 1)
    assert SERVICE.first_token_s(8512, 1) == 0.2 + 1.0


def test_the_same_seed_draws_the_same_fates() -> None:
    service = Service(fail_rate=0.3)
    drawn = [service.fate(random) for random in [Random(7)] for _ in range(1000)]
    again = [service.fate(random) for random in [Random(7)] for _ in range(1000)]
    assert drawn == again
    assert 250 < sum(each is not None for each in drawn) < 350
    assert {each.name for each in drawn if each is not None} == {"failed", "out_of_memory"}
    assert all(Service().fate(Random(seed)) is None for seed in range(10))


def test_durations_differ_a_little() -> None:
    random = Random(1)
    assert all(0.9 <= jittered(1.0, random) <= 1.1 for _ in range(100))


def test_an_answer_is_its_pieces_however_they_are_cut() -> None:
    whole = answer("0123456789", 3, {"max_tokens": 9})
    assert whole.split() == [f"456789-3-{index}" for index in range(9)]
    for cut in range(10):
        assert words("0123456789", 3, 0, cut) + words("0123456789", 3, cut, 9) == whole


def test_how_much_is_said_depends_on_the_turn_alone() -> None:
    assert token_count("s1", 1, {"max_tokens": 7}) == 7
    assert token_count("s1", 1, {"max_tokens": 10**9}) == MOST_TOKENS
    drawn = {token_count("s1", turn, {}) for turn in range(200)}
    assert min(drawn) >= 16
    assert max(drawn) < 128
    assert len(drawn) > 50
    assert token_count("s1", 5, {}) == token_count("s1", 5, {"max_tokens": "many"})
