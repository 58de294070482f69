"""A log as a file, made by a small shop: what commands that look back are tried on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.core.events import Recorded
from tests.core.doings import step
from tests.core.shop import WORK, Shop

TRAINS = e.Workload("finetune", "text", "mistral")
START_MS = 1_795_500_000_000  # 2026-11-24T06:00:00Z


def stored(records: list[Recorded], path: Path) -> Path:
    """Write `records` as `make chaos` does; return `path`."""
    lines = []
    for each in records:
        payload = b'{"event":"no.such"}' if each.event is None else encode(each.event)
        line = {
            "seq": each.seq,
            "at_ms": each.at_ms,
            "subject": each.subject,
            "payload": msgspec.Raw(payload),
        }
        lines.append(msgspec.json.encode(line) + b"\n")
    path.write_bytes(b"".join(lines))
    return path


def busy_shop() -> Shop:
    """Return a shop in which ann and bob talk on one GPU of one slot, and an hour passes before cyd comes."""
    shop = Shop()
    shop.now_ms = START_MS
    shop.append(e.PolicySet(policy=e.Policy(idle_after_ms=1000, coefficients={"a100-80/mistral": 1})), 0)
    shop.join("box-0", 1, [WORK], kind="a100-80")
    shop.join("box-1", 1, [TRAINS], kind="a100-80")
    step(shop)
    shop.open("s-ann", "ann")
    step(shop)
    shop.open("s-bob", "bob", priority=2)
    step(shop, 2000)
    shop.finish(shop.runners["box-0"], "s-ann")
    step(shop, 2000)
    shop.now_ms += 3_600_000
    shop.open("s-cyd", "cyd")
    shop.log.store_raw("session.s-cyd.closed", b"\x1b[31mno JSON")
    return shop
