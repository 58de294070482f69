"""Rows of a trace, one after the other, or what is wrong with one and where."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from helix_es.core.errors import Unreadable

Made = TypeVar("Made")


def csv_rows(path: Path, make: Callable[[dict[str, str]], Made]) -> Iterator[Made]:
    """Yield what `make` makes of each row of a file with a header. Raises Unreadable with the line that is wrong."""
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    made = make(row)
                except (KeyError, TypeError, ValueError) as error:
                    raise Unreadable(f"{path.name}, line {line}: {error!r}") from error
                yield made
        except (csv.Error, UnicodeDecodeError) as error:
            raise Unreadable(f"{path.name}: {error}") from error


def json_rows(path: Path, form: type[Made]) -> Iterator[Made]:
    """Yield each line, decoded as `form`. Raises Unreadable with the line that is wrong."""
    decoder = msgspec.json.Decoder(form)
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                made = decoder.decode(text)
            except msgspec.DecodeError as error:
                raise Unreadable(f"{path.name}, line {line}: {error}") from error
            yield made


def positive(text: str) -> int:
    """Return a number that cannot be below zero. Raises ValueError."""
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number
