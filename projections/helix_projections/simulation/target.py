"""What is to be reached, in words and as a test of an outcome: `p95 first token of continued turns <= 1.5s`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

import msgspec

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.ranges import duration_ms

Quantity = Literal["wait", "start", "first_token", "finetune_start"]
Turns = Literal["all", "first", "continued"]
Measures = Mapping[str, float | None]

WORDS: dict[str, Quantity] = {
    "wait": "wait",
    "start": "start",
    "first token": "first_token",
    "finetune start": "finetune_start",
    "fine-tune start": "finetune_start",
}
GRAMMAR = (
    "'p95 first token <= 1.5s', 'mean wait of first turns <= 1min', 'p95 finetune start <= 5min', "
    "'share of continued turns within 1.5s >= 95%'; several are joined by 'and'"
)

_QUANTITY = "wait|start|first token|fine-?tune start"
_LEVEL = re.compile(
    rf"(?:(?P<statistic>p50|p90|p95|p99|mean) )?(?P<quantity>{_QUANTITY})"
    r"(?: of (?:(?P<turns>first|continued|all) )?turns)? ?(?:<=|≤|<) ?(?P<most>[\d.]+ ?[a-z]+)"
)
_SHARE = re.compile(
    rf"share of (?:(?P<turns>first|continued|all) )?turns(?: with (?P<quantity>{_QUANTITY}))?"
    r" within (?P<within>[\d.]+ ?[a-z]+) ?(?:>=|≥|>) ?(?P<least>\d+(?:\.\d+)?) ?%"
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: a statistic that may be at most `limit` ms, or a share that must be at least `limit`."""

    statistic: Literal["p50", "p90", "p95", "p99", "mean", "share"]
    quantity: Quantity
    turns: Turns = "all"
    limit: float
    within_ms: int | None = None
    """Of a share."""

    @property
    def measure(self) -> str:
        """The name under which an outcome has it."""
        if self.within_ms is not None:
            return share_name(self.turns, self.quantity, self.within_ms)
        some = "" if self.turns == "all" else f"{self.turns}_"
        return f"{some}{self.quantity}_{self.statistic}_ms"

    def words(self) -> str:
        """Return it as it is said."""
        quantity = {"first_token": "first token", "finetune_start": "finetune start"}.get(
            self.quantity, self.quantity
        )
        turns = f" of {self.turns} turns" if self.turns != "all" else ""
        if self.within_ms is None:
            return f"{self.statistic} {quantity}{turns} <= {spoken_ms(self.limit)}"
        whose = f"{self.turns} " if self.turns != "all" else ""
        return f"share of {whose}turns with {quantity} within {spoken_ms(self.within_ms)} >= {self.limit * 100:g}%"

    def mark(self) -> str:
        """Return what stands beside its line in a picture whose title says the rest."""
        if self.within_ms is not None:
            return f"target: >= {self.limit * 100:g}%"
        return f"target: {self.statistic} <= {spoken_ms(self.limit)}"

    def subject(self) -> str:
        """Return what it limits, without the limit."""
        return self.words().partition(" <= ")[0].partition(" >= ")[0]

    def slack(self, measures: Measures) -> float:
        """Return by what factor it is kept: 1 or more where it is reached, below 1 where it is missed.

        Of a share, the turns that miss are compared. Without a value (nothing of the kind was there) it counts as
        missed by far: 0.
        """
        value = measures.get(self.measure)
        if value is None:
            return 0.0
        if self.within_ms is not None:
            return _ratio(1.0 - self.limit, 1.0 - value)
        return _ratio(self.limit, value)


def _ratio(allowed: float, found: float) -> float:
    if found <= 1e-12:
        return math.inf
    return (allowed + 1e-12) / found


def share_name(turns: Turns, quantity: Quantity, within_ms: int) -> str:
    """Return the name of a share among an outcome's measures."""
    some = "" if turns == "all" else f"{turns}_"
    return f"{some}{quantity}_within_{within_ms}ms"


def parse(text: str) -> tuple[Target, ...]:
    """Return the targets that `text` names. Raises Misconfigured with what can be said."""
    said = " ".join(text.lower().split())
    return tuple(_one(part.strip(), text) for part in re.split(r"(?:^| )and(?: |$)", said))


def worst(targets: tuple[Target, ...], measures: Measures) -> float:
    """Return the least slack of all: 1 or more where every target is reached."""
    return min(target.slack(measures) for target in targets)


def _one(part: str, text: str) -> Target:
    if found := _LEVEL.fullmatch(part):
        return _level(found, text)
    if found := _SHARE.fullmatch(part):
        share = Decimal(found["least"]) / 100
        if not 0 < share <= 1:
            raise Misconfigured(f"target {part!r}: a share is above 0 % and at most 100 %")
        quantity = WORDS[found["quantity"] or "first token"]
        if quantity == "finetune_start":
            raise Misconfigured(
                f"target {part!r}: a share is one of turns; give 'p95 finetune start <= 5min'"
            )
        return Target(
            statistic="share",
            quantity=quantity,
            turns=found["turns"] or "all",  # type: ignore[arg-type]
            limit=float(share),
            within_ms=_ms(found["within"], part),
        )
    raise Misconfigured(f"target {part or text!r} is not understood; say for example {GRAMMAR}")


def _level(found: re.Match[str], text: str) -> Target:
    quantity = WORDS[found["quantity"]]
    if quantity == "finetune_start" and found["turns"]:
        raise Misconfigured(f"target {text!r}: fine-tunes have no turns; give 'p95 finetune start <= 5min'")
    return Target(
        statistic=found["statistic"] or "p95",  # type: ignore[arg-type]
        quantity=quantity,
        turns=found["turns"] or "all",  # type: ignore[arg-type]
        limit=float(_ms(found["most"], found[0])),
    )


def _ms(text: str, part: str) -> int:
    try:
        found_ms = duration_ms(text)
    except ValueError as error:
        raise Misconfigured(f"target {part!r}: {text!r} is no duration; give 300ms, 1.5s or 5min") from error
    if found_ms <= 0:
        raise Misconfigured(f"target {part!r}: a duration is above 0")
    return found_ms


def spoken_ms(ms: float) -> str:
    """Return a duration in the unit that gives a short number."""
    for unit, each_ms in (("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= each_ms:
            return f"{ms / each_ms:g}{unit}"
    return f"{ms:g}ms"
