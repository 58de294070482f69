"""A promise that was broken, and where in the log that shows first."""

from __future__ import annotations

from typing import Literal

import msgspec

Rule = Literal[
    "log",  # the log was read whole, and every record is readable
    "ended once",  # every turn ended exactly once; nothing that was acknowledged is missing
    "asked once",  # no request made two turns
    "slots",  # no GPU above its slots
    "reserved",  # no reserved GPU ever served a chat
    "streams",  # no token was lost or doubled
    "attempts",  # nothing of a stale attempt is in a result
    "replayed",  # every decision is made again exactly from the state that it names
]


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    rule: Rule
    seq: int
    """Of the first record that breaks it; 0: no record does, one is missing."""
    session: str = ""
    gpu: str = ""
    text: str
