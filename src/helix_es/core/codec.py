"""Bytes to facts and back: JSON, old versions lifted to today's, anything that does not fit refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import msgspec

from helix_es.core.errors import Unreadable
from helix_es.core.events import AnyEvent, Event
from helix_es.core.subjects import subject_of

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# tag as stored -> the same fact as today's Struct would write it. A changed meaning gets a new tag (".v2") and a row
# here; the old Struct is not edited. An upcast fact keeps its subject, since the subject is how it was stored.
UPCASTERS: dict[str, Upcaster] = {}


def encode(event: Event) -> bytes:
    """Return the JSON that is stored for `event`."""
    return _encoder.encode(event)


def type_of(event: Event) -> str:
    """Return the tag of `event`, which is also its `Helix-Event` header."""
    return str(event.__struct_config__.tag)


def decode(subject: str, data: bytes) -> AnyEvent:
    """Return the fact in `data`.

    Raises Unreadable if it is not JSON of a known fact, or not one that belongs under `subject`: a server's answer
    or another fact can be stored under a protected subject through a forged `reply`, and must not be believed.
    """
    try:
        event = cast(AnyEvent, _decoder.decode(data))
    except msgspec.DecodeError as error:
        event = _upcast(data, error)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8: {error}") from error
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error
    if subject_of(event) != subject:
        raise Unreadable(f"{type_of(event)} does not belong under {subject}")
    return event


def _upcast(data: bytes, cause: msgspec.DecodeError) -> AnyEvent:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable(f"not JSON: {data[:80]!r}") from cause
    tag = raw.get("event") if isinstance(raw, dict) else None
    upcaster = UPCASTERS.get(tag) if isinstance(tag, str) else None
    if upcaster is None:
        raise Unreadable(str(cause)) from cause
    try:
        return cast(AnyEvent, msgspec.convert(upcaster(raw), AnyEvent))
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise Unreadable(f"{tag}: {error}") from error
