"""Admission, memory and endings, on a network that needs no weights."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_es.core.errors import EngineError
from helix_runners.engine.multiplexer import Multiplexer
from helix_runners.engine.port import Finished, Piece
from tests.runners.engine.models import CountingNetwork, drain, finished, limits, turn


def numbers(count: int, first: int = 0) -> list[int]:
    return [number % 250 for number in range(first, first + count)]


def test_a_turn_streams_its_text_and_ends_at_its_length() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits())
    one = turn("s", [1, 2, 3], 3)
    multiplexer.submit(one)
    outputs = [item for _, item in drain(multiplexer)]
    assert outputs[:3] == [Piece(text=chr(0x4E00 + 3 + n), tokens=n) for n in (1, 2, 3)]
    assert outputs[3] == Finished(reason="length", prompt_tokens=3, cached_tokens=0, completion_tokens=3)


def test_an_end_token_ends_the_turn_without_text() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits())
    multiplexer.submit(turn("s", [1], 9, ends={4}))
    outputs = [item for _, item in drain(multiplexer)]
    assert [item.text for item in outputs if isinstance(item, Piece)] == [chr(0x4E02), chr(0x4E03)]
    assert isinstance(outputs[-1], Finished)
    assert (outputs[-1].reason, outputs[-1].completion_tokens) == ("stop", 3)


def test_a_stop_string_ends_the_turn_and_is_not_given_out() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits())
    multiplexer.submit(turn("s", [1], 9, stop=(chr(0x4E03) + chr(0x4E04),)))
    outputs = [item for _, item in drain(multiplexer)]
    assert [item.text for item in outputs if isinstance(item, Piece)] == [chr(0x4E02)]
    assert isinstance(outputs[-1], Finished)
    assert outputs[-1].reason == "stop"


def test_decodes_go_on_while_a_long_prompt_is_read_in_chunks() -> None:
    network = CountingNetwork()
    multiplexer = Multiplexer(network, limits(step_tokens=16))
    for name in "abc":
        multiplexer.submit(turn(name, [1], 50))
    multiplexer.step()
    multiplexer.submit(turn("long", numbers(60), 2))
    for _ in range(5):
        multiplexer.step()
    assert network.batches[1:6] == [[1, 1, 1, 13]] * 4 + [[1, 1, 1, 8]]


def test_those_who_wait_are_served_in_order_even_if_a_later_one_would_fit() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits(budget_tokens=64))
    multiplexer.submit(turn("first", numbers(20), 20))  # 48 tokens in blocks of 16
    multiplexer.submit(turn("large", numbers(20), 20))
    multiplexer.submit(turn("small", [1], 2))
    multiplexer.step()
    assert (multiplexer.stats().running, multiplexer.stats().waiting) == (1, 2)
    assert list(finished(drain(multiplexer))) == ["first", "small", "large"]


def test_no_more_than_max_batch_run_at_once() -> None:
    network = CountingNetwork()
    multiplexer = Multiplexer(network, limits(max_batch=3))
    for number in range(7):
        multiplexer.submit(turn(f"s{number}", [1], 4))
    assert len(finished(drain(multiplexer))) == 7
    assert max(len(batch) for batch in network.batches) == 3


def test_a_turn_that_can_never_fit_is_refused_with_the_numbers() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits(budget_tokens=64))
    with pytest.raises(EngineError, match=r"60 \+ answer 10 tokens .* 640 bytes .* 512") as refused:
        multiplexer.submit(turn("s", numbers(60), 10))
    assert refused.value.code == "kv_budget_exceeded"


def test_a_session_has_one_generation_at_a_time() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits())
    multiplexer.submit(turn("s", [1]))
    with pytest.raises(EngineError) as refused:
        multiplexer.submit(turn("s", [1]))
    assert refused.value.code == "session_busy"


def test_the_least_recently_used_idle_session_is_evicted() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits(budget_tokens=96))
    for name in ("a", "b", "a"):  # a is used again: b is now the oldest
        multiplexer.submit(turn(name, numbers(20), 4))
        drain(multiplexer)
    multiplexer.submit(turn("c", numbers(30), 4))
    drain(multiplexer)
    assert (multiplexer.stats().evictions, multiplexer.stats().cached_sessions) == (1, 2)
    multiplexer.submit(turn("a", numbers(20), 4))
    assert finished(drain(multiplexer))["a"].cached_tokens == 19


def test_a_cancelled_turn_computes_no_further_step_and_keeps_its_keys() -> None:
    network = CountingNetwork()
    multiplexer = Multiplexer(network, limits())
    one = turn("s", numbers(10), 50)
    multiplexer.submit(one)
    for _ in range(3):
        multiplexer.step()
    assert finished(multiplexer.cancel_session("s"))["s"] == Finished(
        reason="cancelled", prompt_tokens=10, cached_tokens=0, completion_tokens=3
    )
    assert not multiplexer.busy
    assert multiplexer.cancel(one) == []
    multiplexer.submit(turn("s", [*one.tokens, 7], 1))
    assert finished(drain(multiplexer))["s"].cached_tokens == 12


def test_a_waiting_turn_can_be_cancelled() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits(max_batch=1))
    for name in "ab":
        multiplexer.submit(turn(name, [1], 5))
    multiplexer.step()
    assert finished(multiplexer.cancel_session("b"))["b"].reason == "cancelled"
    assert list(finished(drain(multiplexer))) == ["a"]


def test_a_forgotten_session_is_gone_also_if_it_was_running() -> None:
    multiplexer = Multiplexer(CountingNetwork(), limits())
    multiplexer.submit(turn("s", numbers(20), 4))
    multiplexer.step()
    multiplexer.forget("s")
    multiplexer.forget("nobody")
    drain(multiplexer)
    assert (multiplexer.stats().cached_sessions, multiplexer.stats().cache_bytes) == (0, 0)


def test_a_failed_step_ends_what_ran_and_spares_what_waits() -> None:
    network = CountingNetwork()
    multiplexer = Multiplexer(network, limits(max_batch=1))
    multiplexer.submit(turn("runs", [1], 5))
    multiplexer.submit(turn("waits", [1], 5))
    multiplexer.step()
    network.fail_with = [MemoryError()]
    with pytest.raises(MemoryError):
        multiplexer.step()
    multiplexer.fail()
    assert multiplexer.stats().cache_bytes == 0
    assert list(finished(drain(multiplexer))) == ["waits"]


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 4), st.integers(1, 60), st.integers(1, 20), st.sampled_from(["", "cancel", "forget"])
    ),
    max_size=25,
)


@settings(deadline=None)
@given(requests=REQUESTS, budget_tokens=st.integers(80, 300), steps=st.integers(0, 6))
def test_memory_never_exceeds_the_budget_and_everybody_is_served(
    requests: list[tuple[int, int, int, str]], budget_tokens: int, steps: int
) -> None:
    multiplexer = Multiplexer(
        CountingNetwork(), limits(budget_tokens=budget_tokens, max_batch=3, step_tokens=8)
    )
    accepted, ended = 0, 0

    def step() -> int:
        over = sum(isinstance(item, Finished) for _, item in multiplexer.step())
        assert multiplexer.stats().cache_bytes <= budget_tokens * 8
        return over

    for number, prompt, answer, then in requests:
        session = f"s{number}"
        # only a busy session is refused: 80 tokens in blocks of 16 hold the longest turn
        with contextlib.suppress(EngineError):
            multiplexer.submit(turn(session, numbers(prompt, number), answer))
            accepted += 1
        ended += sum(step() for _ in range(steps))
        if then == "cancel":
            ended += len(multiplexer.cancel_session(session))
        elif then == "forget":
            multiplexer.forget(session)
    while multiplexer.busy:
        ended += step()
    assert ended == accepted
