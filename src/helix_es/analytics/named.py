"""The queries that we ship: `queries/<name>.sql`, a line that says what for, a line for each parameter, and SQL."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from helix_es.analytics.questions import Unanswered

Type = Literal["text", "count", "number", "instant"]
Number = TypeVar("Number", int, float)

_PARAM = re.compile(r"-- (?P<name>[a-z_]+): (?P<type>[a-z]+)(?: = (?P<default>\S+))? +(?P<text>\S.*)")
_AGO = re.compile(r"-(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")
_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_TAKES = {
    "text": "it takes text",
    "count": "it takes a whole number of at least 0",
    "number": "it takes a number",
}
INSTANT_FORM = (
    "an instant is RFC 3339, as 2026-11-24T12:00:00Z, or counts back from the newest known: now, -90s, -7d"
)


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """What a query takes."""

    name: str
    type: Type
    default: str | None
    """As one writes it; None: it restricts nothing."""
    description: str


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """One query."""

    name: str
    description: str
    params: list[Param]
    sql: str

    @property
    def names(self) -> list[str]:
        """Of its parameters."""
        return [param.name for param in self.params]

    def bound(self, given: dict[str, Any], as_of: datetime | None) -> dict[str, Any]:
        """Return a value for each parameter; `-1h` counts back from `as_of`. Raises Unanswered for wrong ones."""
        if strange := sorted(given.keys() - set(self.names)):
            raise Unanswered(
                "sql_error",
                f"{self.name} has no parameter {', '.join(strange)}; it has {', '.join(self.names) or 'none'}",
            )
        return {param.name: _value(param, given.get(param.name), as_of) for param in self.params}


@cache
def shipped() -> dict[str, Named]:
    """Return every named query by its name, in the order of names."""
    folder = resources.files(__package__) / "queries"
    files = sorted(
        (each for each in folder.iterdir() if each.name.endswith(".sql")), key=lambda each: each.name
    )
    return {
        each.name.removesuffix(".sql"): _read(each.name, each.read_text(encoding="utf-8")) for each in files
    }


def find(name: str) -> Named:
    """Return the query of that name. Raises Unanswered, `unknown_query`."""
    found = shipped().get(name)
    if found is None:
        raise Unanswered(
            "unknown_query", f"there is no query {name[:80]!r}; there are {', '.join(shipped())}"
        )
    return found


def _read(file: str, text: str) -> Named:
    lines = text.splitlines()
    params = []
    for line in lines[1:]:
        match = _PARAM.fullmatch(line)
        if match is None or match["type"] not in get_args(Type):
            break
        kind = cast(Type, match["type"])
        params.append(
            Param(name=match["name"], type=kind, default=match["default"], description=match["text"])
        )
    return Named(
        name=file.removesuffix(".sql"),
        description=lines[0].removeprefix("-- "),
        params=params,
        sql="\n".join(lines[1 + len(params) :]),
    )


def _value(param: Param, given: Any, as_of: datetime | None) -> Any:
    raw = param.default if given is None else given
    if raw is None:
        return None
    try:
        match param.type:
            case "text":
                return str(raw)
            case "count":
                return _known(int(str(raw)), least=0)
            case "number":
                return _known(float(raw))
            case "instant":
                return _instant(str(raw), as_of)
    except (ValueError, TypeError, OverflowError):
        allowed = INSTANT_FORM if param.type == "instant" else _TAKES[param.type]
        raise Unanswered(
            "sql_error", f"parameter {param.name}: {str(raw)[:80]!r} does not fit; {allowed}"
        ) from None


def _known(number: Number, least: float = -math.inf) -> Number:
    """Return `number`. Raises ValueError for one below `least`, and for what is none, or endless."""
    if not math.isfinite(number) or number < least:
        raise ValueError(number)
    return number


def _instant(text: str, as_of: datetime | None) -> datetime:
    newest = as_of or datetime.now(UTC)
    if text == "now":
        return newest
    if match := _AGO.fullmatch(text):
        return newest - timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
