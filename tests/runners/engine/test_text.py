"""Streamed text is final, whole, and ends before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from helix_runners.engine.text import REPLACEMENT, Detokeniser, StopFilter, TextStream
from tests.runners.engine.models import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=REPLACEMENT), max_size=30)


def decode(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def pieces(tokens: Sequence[int]) -> list[str]:
    detokeniser = Detokeniser(decode)
    return [*(detokeniser.push(token) for token in tokens), detokeniser.flush()]


@settings(deadline=None)
@given(text=TEXTS)
@example(text="naïve €uro 👩‍👩‍👧 日本")
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str) -> None:
    out = pieces(encode(text))
    assert "".join(out) == text
    assert not any(REPLACEMENT in piece for piece in out)


def test_half_a_character_at_the_end_is_not_given_out() -> None:
    assert "".join(pieces(encode("ab€")[:-1])) == "ab"


def test_special_tokens_leave_no_text() -> None:
    assert "".join(pieces([*encode("a"), 257, *encode("b")])) == "ab"


def test_a_tokenizer_that_strips_the_first_space_keeps_the_others() -> None:
    words = ["▁the", "▁river", "s", "▁ends"]

    def strip_first(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    detokeniser = Detokeniser(strip_first)
    assert [detokeniser.push(token) for token in range(4)] == ["the", " river", "s", " ends"]


def cut(text: str, stops: Sequence[str]) -> str:
    """The specification: up to the stop string that is complete first, the longest if several are."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop and stop in text]
    return text[: min(ends)[1]] if ends else text


SMALL = st.text("ab€", max_size=12)


@settings(deadline=None)
@given(text=SMALL, stops=st.lists(st.text("ab€", max_size=4), max_size=3), data=st.data())
def test_a_stop_string_ends_the_text_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stop_filter = StopFilter(stops)
    out, left = "", text
    while left and not stop_filter.stopped:
        size = data.draw(st.integers(1, len(left)))
        out += stop_filter.push(left[:size])
        left = left[size:]
        assert cut(text, stops).startswith(out)  # nothing was given out that had to be taken back
    out += stop_filter.flush()
    assert out == cut(text, stops)
    assert stop_filter.stopped == any(stop and stop in text for stop in stops)


@settings(deadline=None)
@given(text=SMALL, stops=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_may_span_tokens_and_characters_may_too(text: str, stops: list[str]) -> None:
    stream = TextStream(decode, stops)
    out = ""
    for token in encode(text):
        out += stream.push(token)
        if stream.stopped:
            break
    out += stream.flush()
    assert out == cut(text, stops)
    assert not any(stop in out for stop in stops)


def test_what_only_looked_like_a_stop_string_is_given_out() -> None:
    stop_filter = StopFilter(["END"])
    assert [stop_filter.push(part) for part in ("an E", "N", "D?"[1:])] == ["an ", "", "EN?"]
