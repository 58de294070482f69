"""Datasets: three forms, errors that name the line and what is allowed, and never more than a line in memory."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example as given_example
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.dataset import MOST_LINE_BYTES, Checker, Summary, check, example, examples
from helix_es.core.errors import Rejected
from helix_es.core.values import Message

USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Me."}
CHAT = {"messages": [USER, ANSWER]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
ALPACA = {"instruction": "Who?", "input": "", "output": "Me."}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def refused(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        check([data])
    assert caught.value.code == "invalid_dataset"
    return str(caught.value)


@pytest.mark.parametrize(("form", "row"), [("chat", CHAT), ("sharegpt", SHAREGPT), ("alpaca", ALPACA)])
def test_three_forms_say_the_same(form: str, row: dict[str, Any]) -> None:
    told = [Message(role="user", content="Who?"), Message(role="assistant", content="Me.")]
    assert example(json.dumps(row).encode()) == (form, told)
    assert check([lines(row, row)]) == Summary(form=form, examples=2)  # type: ignore[arg-type]


def test_roles_of_sharegpt_and_the_parts_of_alpaca() -> None:
    names = ["system", "human", "gpt", "user", "assistant"]
    row = {"conversations": [{"from": name, "value": name} for name in names]}
    _, told = example(json.dumps(row).encode())
    assert [each.role for each in told] == ["system", "user", "assistant", "user", "assistant"]
    flat = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}
    _, told = example(json.dumps(flat).encode())
    assert [each.content for each in told] == ["Be brief.", "Add.\n\n1 2", "3"]


def test_examples_come_with_the_numbers_of_their_lines() -> None:
    data = b"\xef\xbb\xbf" + lines(CHAT) + b"\n  \t\r\n" + lines(CHAT)[:-1] + b"\r\n\n"
    assert [number for number, _ in examples([data])] == [1, 4]
    assert check([data]).examples == 2


def test_the_last_line_needs_no_newline() -> None:
    assert check([lines(CHAT, CHAT)[:-1]]).examples == 2


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "is a list; it must be"),
        ("text", "is a text; it must be"),
        (None, "is null; it must be"),
        ({}, "has nothing; it must be"),
        ({"prompt": "a", "completion": "b"}, "has 'prompt', 'completion'; it must be"),
        ({"messages": {}}, "messages is an object; it must be a list"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": [USER, "x"]}, "messages[1] is a text"),
        (
            {"messages": [{"role": "tool", "content": "x"}, ANSWER]},
            "messages[0].role is 'tool'; it must be system",
        ),
        ({"messages": [{"content": "x"}, ANSWER]}, "messages[0].role is missing"),
        ({"messages": [{"role": 10**50, "content": "x"}, ANSWER]}, "messages[0].role is a number"),
        (
            {"messages": [{"role": "user", "content": None}, ANSWER]},
            "messages[0].content is null; it must be text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]},
            "messages[0].content is a list",
        ),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "messages[1].content is empty"),
        (
            {"messages": [USER, {"role": "assistant", "content": "a\x00b"}]},
            "messages[1].content contains a NUL",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "messages[1] has weight, which is not learnt"),
        (turns("user", "system", "assistant"), "messages[1] is the system's; only the first"),
        (turns("user", "user"), "messages has no answer"),
        (turns("user", "assistant", "user"), "messages ends with the user's words"),
        (turns("system", "assistant"), "messages begins with the assistant"),
        (turns("assistant", "user", "assistant"), "messages begins with the assistant"),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            "conversations[0].from is 'bot'; it must be system",
        ),
        ({"instruction": "a"}, "output is missing; it must be text"),
        ({"instruction": 7, "output": "b"}, "instruction is a number"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "input is a list"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(row: Any, said: str) -> None:
    assert refused(lines(CHAT, CHAT, row)).startswith(f"line 3: {said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello", "is not JSON: "),
        (b'{"messages": [', "is not JSON: "),
        (b'{"a": 1} {"a": 2}', "is not JSON: trailing characters"),
        (b'{"a": 1e999}', "is not JSON: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b'{"a": "\\ud800"}', "is not JSON: "),
        (b'{"instruction": "\xff\xfe", "output": "x"}', "is not UTF-8 at byte 18"),
        (b"\xff\xfe{\x00}\x00", "contains a NUL byte"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"instruction": ' + b'{"a": ' * 50_000, "is nested too deeply"),
    ],
)
def test_what_is_not_a_json_object_is_refused(line: bytes, said: str) -> None:
    assert refused(lines(CHAT) + line).startswith(f"line 2: {said}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file has no example"),
        (b"\xef\xbb\xbf", "the file has no example"),
        (b"\n\n \r\n", "the file has no example"),
        (lines(CHAT), "the file has 1 example; at least 2"),
    ],
)
def test_too_few_examples_are_refused(data: bytes, said: str) -> None:
    assert refused(data).startswith(said)


def test_a_file_has_one_form() -> None:
    assert refused(lines(CHAT, ALPACA, CHAT)) == (
        "line 2: has the form alpaca, the lines before it chat; a file has one form"
    )


def test_ten_wrong_lines_are_enough() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield lines(CHAT, {})

    with pytest.raises(Rejected) as caught:
        check(endless())
    told = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [f"line {2 * n}" for n in range(1, 11)]
    assert told[-1] == "… the lines after that were not looked at"


def test_a_line_without_end_is_refused_and_never_held() -> None:
    piece = b"x" * (1 << 16)
    tracemalloc.start()
    try:
        checker = Checker()
        for _ in range(1024):  # 64 MiB
            checker.feed(piece)
        checker.feed(b"\n" + lines(CHAT, CHAT))
        with pytest.raises(Rejected, match=f"line 1: is longer than {MOST_LINE_BYTES} bytes"):
            checker.end()
        assert tracemalloc.get_traced_memory()[1] < 4 * MOST_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_a_line_of_just_the_most_bytes_is_an_example() -> None:
    frame = json.dumps({"instruction": "", "output": "x"})
    row = {"instruction": "a" * (MOST_LINE_BYTES - len(frame)), "output": "x"}
    assert check(io.BytesIO(lines(row, row))).examples == 2
    row["output"] = "xy"
    assert "line 1: is longer" in refused(lines(row, row))
    with pytest.raises(Rejected, match="is longer"):
        example(json.dumps(row).encode())


def test_a_file_is_read_in_pieces_whatever_the_length_of_its_lines() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.largest = max(self.largest, len(data))
            return data

    file = Counting(lines(*[CHAT] * 5000))
    assert check(file) == Summary(form="chat", examples=5000)
    assert file.largest <= 1 << 16


TURNS = ["messages", "conversations", "role", "content", "from", "value", "weight"]
KEYS = [*TURNS, "instruction", "input", "output", "system"]
WORDS = st.sampled_from(
    [*KEYS, "user", "assistant", "human", "gpt", "tool", "", " ", "x\x00", "\ud83d", "🚢"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
ROWS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
GOOD = st.sampled_from([CHAT, SHAREGPT, ALPACA]).map(lambda row: json.dumps(row).encode())
LINES = st.one_of(GOOD, ROWS.map(lambda row: json.dumps(row).encode()), st.binary(max_size=40))


@given(st.lists(LINES, max_size=14).map(b"\n".join), st.integers(1, 50))
@given_example(b'{"messages": [{"role": "user", "content": "' + b"\\ud800" * 3 + b'"}]}', 7)
def test_nothing_raises_anything_but_rejected_however_it_is_cut(data: bytes, size: int) -> None:
    def outcome(pieces: list[bytes]) -> Summary | str:
        try:
            return check(pieces)
        except Rejected as error:
            return f"{error.code}: {error}"

    whole = outcome([data])
    assert outcome([data[at : at + size] for at in range(0, len(data), size)]) == whole
    if isinstance(whole, str):
        assert whole.startswith("invalid_dataset: ")
        assert whole.encode()  # it can be sent
    if isinstance(whole, Summary):
        told = [messages for _, messages in examples([data])]
        assert len(told) == whole.examples >= 2
        assert all(messages[-1].role == "assistant" for messages in told)
        json.dumps([[message.content for message in messages] for messages in told]).encode()
