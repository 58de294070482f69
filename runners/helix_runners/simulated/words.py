"""What simulated turns say: the same at every attempt, so that a lost or doubled token shows in the stream."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 1024  # of a simulated answer, whatever was asked for
LEAST_DRAWN = 16
DRAWN = 112  # answers without `max_tokens` have 16 to 127 tokens
NAME_CHARS = 6  # the end of a session's id: the start is the same for many that count
CHARS_PER_TOKEN = 4  # of prompts, as English text has them


def token_count(session: str, turn: int, params: Mapping[str, Any]) -> int:
    """Return the tokens of an answer: `max_tokens` if it was asked for, else drawn from the turn's name.

    No seed of the runner enters: another attempt may be another runner's, and must say the same.
    """
    asked = params.get("max_tokens")
    if isinstance(asked, int) and asked > 0:
        return min(asked, MOST_TOKENS)
    return LEAST_DRAWN + zlib.crc32(f"{session}:{turn}".encode()) % DRAWN


def words(session: str, turn: int, begin: int, end: int) -> str:
    """Return the tokens `begin` to `end` (not included) of an answer, as in `s3f-1-0 s3f-1-1`."""
    start = f"{session[-NAME_CHARS:]}-{turn}-"
    said = " ".join([f"{start}{index}" for index in range(begin, end)])
    return f" {said}" if begin and said else said


def answer(session: str, turn: int, params: Mapping[str, Any]) -> str:
    """Return all of an answer, as whoever checks a stream needs it."""
    return words(session, turn, 0, token_count(session, turn, params))


def prompt_tokens(text: str) -> int:
    """Return about how many tokens `text` has."""
    return 1 + len(text) // CHARS_PER_TOKEN
