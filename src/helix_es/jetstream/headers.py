"""NATS headers as bytes to a dict: only where a reader needs them."""

from __future__ import annotations

from datetime import datetime


def parse(raw: bytes) -> tuple[int, dict[str, str]]:
    """Return (inline status or 0, headers). Keys keep their case; of a repeated key the last one counts."""
    head, _, rest = raw.partition(b"\r\n")
    inline = head[8:].strip()  # after b"NATS/1.0"
    status = int(inline[:3]) if inline[:3].isdigit() else 0
    found: dict[str, str] = {}
    for line in rest.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        if colon:
            found[key.decode()] = value.strip().decode()
    return status, found


def stamp_ms(rfc3339: str) -> int:
    """Return the Unix ms of a server's timestamp such as 2026-11-22T17:36:36.006222879Z."""
    return int(datetime.fromisoformat(rfc3339).timestamp() * 1000)
