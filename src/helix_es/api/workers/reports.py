"""What a worker may say about a task in its hand, and the limits of it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from helix_es.core.errors import Rejected

MOST_CHARS = 786_432  # of one turn's output: as JSON it must fit a NATS message of 1 MiB with its headers
MOST_DETAIL_BYTES = 4096
MOST = 1_000_000_000

Count = Annotated[int, Meta(ge=0, le=MOST)]


class _Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Piece(_Report, frozen=True, kw_only=True):
    """The next piece of text, a step, or nothing: a sign of life."""

    text: str = ""
    offset: Annotated[int, Meta(ge=0, le=MOST_CHARS)] | None = None
    """Characters of the output that come before; None: all that was said so far."""
    step: Count | None = None
    steps: Count | None = None
    detail: dict[str, Any] = {}


class Tokens(_Report, frozen=True, kw_only=True):
    """What the turn took."""

    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    completion_tokens: Count = 0


class Completion(_Report, frozen=True, kw_only=True):
    """The turn's end."""

    output: str | None = None
    """None: what was said piece by piece."""
    files: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = []
    usage: Tokens = Tokens()
    finish_reason: Annotated[str, Meta(pattern="^[a-z_]{1,32}$")] = "stop"


class Failing(_Report, frozen=True, kw_only=True):
    """The turn's end without a result."""

    code: Annotated[str, Meta(pattern="^[a-z0-9_]{1,64}$")] = "worker_error"
    message: Annotated[str, Meta(min_length=1, max_length=4000)]


Report = TypeVar("Report", Piece, Completion, Failing)


def read(raw: bytes, kind: type[Report]) -> Report:
    """Return the report in the body `raw`; an empty one is `{}`. Raises Rejected with what is wrong."""
    try:
        return checked(msgspec.json.decode(raw if raw.strip() else b"{}", type=kind))
    except msgspec.ValidationError as error:
        raise invalid(error, kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("invalid_json", f"the body is not JSON: {error}") from error


def taken(fields: dict[str, Any], kind: type[Report]) -> Report:
    """Return the report that `fields` of a message make. Raises Rejected with what is wrong."""
    try:
        return checked(msgspec.convert(fields, kind))
    except msgspec.ValidationError as error:
        raise invalid(error, kind) from error


def checked(report: Report) -> Report:
    """Return `report`. Raises Rejected if its parts do not go together."""
    if not isinstance(report, Piece):
        return report
    if (report.step is None) != (report.steps is None) or (report.step or 0) > (report.steps or 0):
        raise Rejected("invalid_request", "step, steps: give both, step at most steps")
    if len(msgspec.json.encode(report.detail)) > MOST_DETAIL_BYTES:
        raise Rejected("invalid_request", f"detail: at most {MOST_DETAIL_BYTES} bytes of JSON are allowed")
    return report


def invalid(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> Rejected:
    """Return the refusal that names the field."""
    what, _, where = str(error).partition(" - at `$.")
    allowed = "" if where else f"; allowed are: {', '.join(kind.__struct_fields__)}"
    prefix = f"{where.rstrip('`')}: " if where else ""
    return Rejected("invalid_request", f"{prefix}{what}{allowed}")


def too_large() -> Rejected:
    """Return the refusal of an output that does not fit the log."""
    return Rejected("output_too_large", f"a turn's output is at most {MOST_CHARS} characters and bytes")
