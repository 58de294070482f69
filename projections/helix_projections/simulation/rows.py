"""Rows of a trace, one after the other, or what is wrong with one and where."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from helix_es.core.errors import Unreadable

MOST = 10**15  # as ms these are 30,000 years: a longer number is a slip, and must not overflow later
MOST_DIGITS = 1_000  # Python itself refuses to read 4,300
DIGITS = re.compile(r"\+?[0-9]+")
Made = TypeVar("Made", bound=msgspec.Struct)
Whole = Annotated[int, msgspec.Meta(ge=0, le=MOST, description="a whole number of at least 0")]
Number = Annotated[float, msgspec.Meta(ge=0, le=MOST, description="a number of at least 0")]
SHOWN = 100  # characters of a value, in what is said of it


class Row(msgspec.Struct, frozen=True):
    """A row of a CSV, which knows where it is."""

    file: str
    line: int
    """On which it begins."""
    cells: dict[str, str]
    """By column."""

    def text(self, column: str) -> str:
        """Return what is there, without the spaces around it. Raises Unreadable if the row ends before the column."""
        if column not in self.cells:
            raise Unreadable(f"{self.file}, line {self.line}: column {column} is missing")
        return self.cells[column].strip()

    def whole(self, column: str) -> int:
        """Return the number that is there. Raises Unreadable for anything but a whole number from 0 to MOST."""
        text = self.text(column)
        if not DIGITS.fullmatch(text):
            raise self.refused(column, "not a whole number of at least 0")
        if len(text) > MOST_DIGITS or int(text) > MOST:
            raise self.refused(column, "too large")
        return int(text)

    def refused(self, column: str, why: str) -> Unreadable:
        """Return the error that says what is there and `why` it cannot be."""
        return Unreadable(
            f"{self.file}, line {self.line}: {column} is {shown(repr(self.text(column)))}, {why}"
        )


def columns(line: str) -> list[str]:
    """Return the names in a header, without quotes and spaces; none if it is no row of a CSV."""
    try:
        return [name.strip() for cells in csv.reader([line], skipinitialspace=True) for name in cells]
    except csv.Error:
        return []


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows below the header, which is the first line that is not empty.

    Raises Unreadable with the line that is wrong.
    """
    lines = csv.reader((text for _, text in _lines(path)), skipinitialspace=True)
    header: list[str] = []
    line = 1
    try:
        for cells in lines:
            if len(cells) > 1 or "".join(cells).strip():
                if header:
                    yield Row(path.name, line, dict(zip(header, cells, strict=False)))
                else:
                    header = [name.strip() for name in cells]
            line = lines.line_num + 1
    except csv.Error as error:
        why = "this is no row of a CSV: is a quote left open, or a line ended by a CR alone?"
        raise Unreadable(f"{path.name}, line {line}: {why}") from error


def json_rows(path: Path, form: type[Made]) -> Iterator[Made]:
    """Yield each line that is not empty, decoded as `form`, whose fields are annotated with a description each.

    Raises Unreadable with the line that is wrong.
    """
    decoder = msgspec.json.Decoder(form)
    for line, text in _lines(path):
        if not text.strip():
            continue
        try:
            made = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unreadable(f"{path.name}, line {line}: {_wrong(text, form, error)}") from error
        yield made


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise Unreadable(f"{path.name}, line {line}: not UTF-8; save it as UTF-8") from error


def _wrong(text: str, form: type[msgspec.Struct], error: Exception) -> str:
    """Return which field of a line is wrong, and why."""
    no_json = "this is not JSON" + (f" ({error})" if isinstance(error, msgspec.DecodeError) else "")
    try:
        found = json.loads(text)  # unlike msgspec it reads NaN and Infinity, so that they can be named
    except (ValueError, RecursionError):
        return no_json
    if not isinstance(found, dict):
        return f"{shown(repr(text.strip()))} is not an object, as in {{…}}"
    for field in msgspec.structs.fields(form):
        if field.name not in found:
            return f"{field.name} is missing"
        value = found[field.name]
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            large = type(value) in (int, float) and value > MOST
            why = "too large" if large else f"not {field.type.__metadata__[0].description}"
            return f"{field.name} is {shown(json.dumps(value))}, {why}"
    return no_json


def shown(value: str) -> str:
    """Return it, or its beginning if it is long."""
    return value if len(value) <= SHOWN else f"{value[: SHOWN - 1]}…"
