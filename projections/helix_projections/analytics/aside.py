"""Messages that nobody can read: their rows in `set_aside`."""

from __future__ import annotations

from helix_es.jetstream.follow import Message
from helix_projections.analytics.rows import Row

NOT_TEXT = "it is not UTF-8 throughout"
REASON_CHARS = 300


def aside(stream: str, message: Message, reason: str) -> Row:
    """Return the row of `message` of `stream`."""
    about = (message.seq, message.at_ms, message.subject)
    return (stream, *about, reason[:REASON_CHARS], message.body)


def is_text(body: bytes) -> bool:
    """Whether all of `body` is UTF-8: a decoder passes over fields that it does not know."""
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
