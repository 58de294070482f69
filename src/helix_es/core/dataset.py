"""What a fine-tune learns from: lines of JSON, each a conversation in one of three forms, checked as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from helix_es.core.errors import Rejected
from helix_es.core.values import Message

Form = Literal["chat", "sharegpt", "alpaca"]
Role = Literal["system", "user", "assistant"]

MOST_LINE_BYTES = 1 << 20  # far above any context; what is longer is not one example but a broken file
PIECE_BYTES = 1 << 16
LEAST_EXAMPLES = 2  # one to learn from and one to measure on
SHOWN_LINES = 10  # wrong lines in one error: enough to see what is wrong, few enough to read
CODE = "invalid_dataset"

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_CHAT: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT: dict[str, Role] = {**_CHAT, "human": "user", "gpt": "assistant"}
# Their absence from what is learnt would go unnoticed, so they are refused by name.
_NOT_LEARNT = ("tool_calls", "function_call", "weight")
_FORMS = (
    '{"messages": [{"role": …, "content": …}]}, {"conversations": [{"from": …, "value": …}]} or '
    '{"instruction": …, "input": …, "output": …}'
)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset is."""

    form: Form
    examples: int


@runtime_checkable
class Readable(Protocol):
    """A binary file."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""


Source = Readable | Iterable[bytes]
"""A binary file, or its content in pieces, cut wherever they are."""


class Wrong(Exception):
    """What is wrong with one line, and what is allowed."""


def example(line: bytes) -> tuple[Form, list[Message]]:
    """Return the form of one line and its conversation, which ends with an answer.

    Raises Rejected("invalid_dataset"), saying what is wrong and what is allowed.
    """
    try:
        return _example(line)
    except Wrong as error:
        raise Rejected(CODE, str(error)) from error


def check(source: Source) -> Summary:
    """Return what `source` is. Never holds more than one line and a piece in memory.

    Raises Rejected("invalid_dataset") with the number of each wrong line, ten at most, and what is wrong with it.
    """
    checker = Checker()
    for piece in _pieces(source):
        checker.feed(piece)
    return checker.end()


def examples(source: Source) -> Iterator[tuple[int, list[Message]]]:
    """Yield each example with the number of its line. Raises Rejected("invalid_dataset") at a wrong one."""
    lines = _Lines()
    for piece in _pieces(source):
        yield from map(_numbered, lines.feed(piece))
    yield from map(_numbered, lines.end())


def _numbered(line: tuple[int, bytes | None]) -> tuple[int, list[Message]]:
    number, content = line
    try:
        return number, _example(content)[1]
    except Wrong as error:
        raise Rejected(CODE, f"line {number}: {error}") from error


def _pieces(source: Source) -> Iterable[bytes]:
    if not isinstance(source, Readable):
        return source
    # read in pieces, since a file's own lines may be of any length
    return iter(partial(source.read, PIECE_BYTES), b"")


class Checker:
    """Checks a dataset as it comes, piece by piece."""

    def __init__(self) -> None:
        self._lines = _Lines()
        self._form: Form | None = None
        self._examples = 0
        self._wrong: list[str] = []

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the file. Raises Rejected as soon as ten lines are wrong."""
        self._take(self._lines.feed(piece))

    def end(self) -> Summary:
        """Return what the whole is. Raises Rejected if a line is wrong or there are too few."""
        self._take(self._lines.end())
        if self._wrong:
            raise Rejected(CODE, ";\n".join(self._wrong))
        if self._form is None:
            raise Rejected(CODE, f"the file has no example; each line must be {_FORMS}")
        if self._examples < LEAST_EXAMPLES:
            raise Rejected(
                CODE, f"the file has {self._examples} example; at least {LEAST_EXAMPLES} are needed"
            )
        return Summary(form=self._form, examples=self._examples)

    def _take(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        for number, content in lines:
            try:
                self._count(_example(content)[0])
            except Wrong as error:
                self._wrong.append(f"line {number}: {error}")
            if len(self._wrong) == SHOWN_LINES:
                self._wrong.append("… the lines after that were not looked at")
                raise Rejected(CODE, ";\n".join(self._wrong))

    def _count(self, form: Form) -> None:
        self._form = self._form or form
        if form != self._form:
            raise Wrong(f"has the form {form}, the lines before it {self._form}; a file has one form")
        self._examples += 1


class _Lines:
    """Pieces into numbered lines; a line that is too long is not kept, only that it was there (None)."""

    def __init__(self) -> None:
        self._number = 0
        self._held = bytearray()
        self._too_long = False

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            self._hold(part)
            yield from self.end()
        self._hold(rest)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield the line that is held, unless it is blank."""
        self._number += 1
        line, too_long = bytes(self._held), self._too_long
        self._held.clear()
        self._too_long = False
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if too_long:
            yield self._number, None
        elif line.strip(_BLANK):
            yield self._number, line

    def _hold(self, part: bytes) -> None:
        if self._too_long or len(self._held) + len(part) > MOST_LINE_BYTES:
            self._held.clear()
            self._too_long = True
        else:
            self._held += part


def _example(line: bytes | None) -> tuple[Form, list[Message]]:
    if line is None or len(line) > MOST_LINE_BYTES:
        raise Wrong(f"is longer than {MOST_LINE_BYTES} bytes; an example must be shorter")
    row = _decoded(line)
    if not isinstance(row, dict):
        raise Wrong(f"is {_kind(row)}; it must be {_FORMS}")
    if "messages" in row:
        return "chat", _conversation(row["messages"], "messages", ("role", "content"), _CHAT)
    if "conversations" in row:
        return "sharegpt", _conversation(row["conversations"], "conversations", ("from", "value"), _SHAREGPT)
    if "instruction" in row:
        return "alpaca", _alpaca(row)
    found = ", ".join(_quoted(key) for key in list(row)[:5]) or "nothing"
    raise Wrong(f"has {found}; it must be {_FORMS}")


def _decoded(line: bytes) -> Any:
    if b"\x00" in line:
        raise Wrong("contains a NUL byte; the file must be UTF-8 text")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise Wrong(f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    try:
        return msgspec.json.decode(line)
    except RecursionError as error:
        raise Wrong("is nested too deeply; an example has two levels") from error
    except msgspec.DecodeError as error:
        told = str(error).removeprefix("JSON is malformed: ")
        raise Wrong(f"is not JSON: {told}; each line must be one JSON object") from error


def _conversation(turns: Any, field: str, names: tuple[str, str], roles: dict[str, Role]) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise Wrong(f"{field} is {_kind(turns)}; it must be a list of at least a question and its answer")
    messages = [_message(turn, f"{field}[{index}]", names, roles) for index, turn in enumerate(turns)]
    _check_order([message.role for message in messages], field)
    return messages


def _message(turn: Any, where: str, names: tuple[str, str], roles: dict[str, Role]) -> Message:
    who, what = names
    if not isinstance(turn, dict):
        raise Wrong(f'{where} is {_kind(turn)}; it must be {{"{who}": …, "{what}": …}}')
    for name in _NOT_LEARNT:
        if turn.get(name) is not None:
            raise Wrong(f"{where} has {name}, which is not learnt from; leave it out")
    role = turn.get(who)
    if not isinstance(role, str) or role not in roles:
        found = _quoted(role) if isinstance(role, str) else _found(turn, who)
        raise Wrong(f"{where}.{who} is {found}; it must be {', '.join(roles)}")
    return Message(role=roles[role], content=_text(turn, what, f"{where}.{what}"))


def _check_order(roles: list[Role], field: str) -> None:
    """An answer is learnt from what came before it, so that something must."""
    if "system" in roles[1:]:
        raise Wrong(f"{field}[{roles.index('system', 1)}] is the system's; only the first may be")
    if "assistant" not in roles:
        raise Wrong(f"{field} has no answer of the assistant's; there is nothing to learn")
    if roles[-1] != "assistant":
        raise Wrong(f"{field} ends with the {roles[-1]}'s words; the last must be the assistant's")
    if "user" not in roles[: roles.index("assistant")]:
        raise Wrong(f"{field} begins with the assistant; the first must be the user's or the system's")


def _alpaca(row: dict[str, Any]) -> list[Message]:
    prompt = _text(row, "instruction", "instruction")
    if row.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{_text(row, 'input', 'input')}"
    answer = Message(role="assistant", content=_text(row, "output", "output"))
    messages = [Message(role="user", content=prompt), answer]
    if row.get("system") not in (None, ""):
        return [Message(role="system", content=_text(row, "system", "system")), *messages]
    return messages


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise Wrong(f"{where} is {_found(row, name)}; it must be text")
    if not value.strip():
        raise Wrong(f"{where} is empty; it must be text")
    if "\x00" in value:
        raise Wrong(f"{where} contains a NUL; leave it out")
    return value


def _found(row: dict[str, Any], name: str) -> str:
    return _kind(row[name]) if name in row else "missing"


def _kind(value: Any) -> str:
    """Return what JSON calls a value: the value itself could be of any length."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case []:
            return "an empty list"
        case list():
            return "a list"
        case _:
            return "an object"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
