"""What a file is, by what is in it; its name is only somebody's word."""

from __future__ import annotations

import codecs

import msgspec

HEAD_BYTES = 1 << 20
"""How much of a file is looked at; JSON is recognised up to this size."""

BYTES = "application/octet-stream"
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def media_of(head: bytes, *, whole: bool) -> str:
    """Return the media type of what begins with `head`; `whole`: nothing follows it."""
    for magic, media in MAGIC:
        if head.startswith(magic):
            return media
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if not head or b"\0" in head:
        return BYTES
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        return BYTES
    return "application/json" if whole and _is_json(head) else "text/plain"


def _is_json(data: bytes) -> bool:
    """Whether it is one object or array; a lone word or number is text."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes begins as the safetensors format does: the header's length, then the header."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= size - 8 and head[8:9] == b"{"
