"""What came of a simulation: what happened to each turn, and what was used of the floor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from helix_es.core.events import Workload

Measure = Literal["wait", "start", "first_token"]
Which = Literal["all", "first", "continued"]

PERCENTILES = (50, 95, 99)
MS_PER_HOUR = 3_600_000


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn, and when what happened to it. Times are those of the simulation, ms; None: it never did."""

    session: str
    turn: int
    owner: str
    workload: Workload
    straight: bool
    """Its session held a slot, so it went straight to its GPU."""
    said_ms: int
    admitted_ms: int | None
    """To its first slot; when it was said, if it went straight."""
    started_ms: int | None
    """For the first time."""
    first_token_ms: int | None
    """Of the attempt that ended it; of a picture or a fine-tune, when it was done."""
    ended_ms: int | None
    prompt_tokens: int
    output_tokens: int
    attempts: int
    failed: bool = False
    """It ended without an answer: it would rather fail than wait on."""

    def took_ms(self, measure: Measure) -> int | None:
        """Return the time from when it was said to when it was admitted, was started or had its first token, ms."""
        if measure == "wait":
            then_ms = self.admitted_ms
        elif measure == "start":
            then_ms = self.started_ms
        else:
            then_ms = self.first_token_ms
        return None if then_ms is None else then_ms - self.said_ms


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is counted from the opening (`open_ms` of the scenario) to the end of the last turn."""

    turns: list[Turn]
    """Those that ended, in the order in which they did; then those that never will."""
    begun_ms: int
    ended_ms: int
    present_ms: int
    """GPUs × time."""
    busy_ms: int
    """Of that: while they computed."""
    offered_ms: int
    """Slots of GPUs that serve chats or pictures × time. What a GPU that drains still holds counts as offered."""
    held_ms: int
    """Of that: while a session held them, silent or not."""
    preempted: int
    """Attempts of fine-tunes that gave way to chats."""
    released: int
    """Slots that silent sessions gave back to others."""

    def measures(self, within_ms: int | None = None) -> dict[str, float | None]:
        """Return numbers by name.

        For m in wait, start, first_token, over turns of chats: `{m}_{p50,p95,p99,mean}_ms`, the same of first turns of
        sessions `first_{m}_…`, and of all others `continued_{m}_…`, whether the session still held its slot or had to
        queue again. `wait` is from said to admitted (0 for what goes straight to the GPU that holds the session),
        `start` to started, `first_token` to the first token. A turn of a trace that came before the last one was
        answered is said when that is.

        Percentiles interpolate. A turn that never got so far counts as longer than all others: a percentile or mean
        among such, or of no turns at all, is None.

        `utilisation`: slots held of slots offered, 0 to 1; `busy`: of the GPUs' time, while they computed, 0 to 1;
        `finetunes`: said; `finetune_start_{p50,p95,p99,mean}_ms`: said to started for the first time;
        `finetunes_per_gpu_hour`; `turns`: of chats and pictures, said; `pictures`: of these; `unfinished`: of all turns
        and fine-tunes, those without an end or with a bad one; `requeued`: turns in the middle of a conversation that
        had to queue, since their session had lost its slot; `preempted`, `released`: see there; `gpu_hours`;
        `tokens_per_s`: said by all together; `duration_s`.
        With `within_ms`: `goodput_per_gpu_hour`, turns of chats with their first token in that time, per GPU-hour; and
        `{first_,continued_,}first_token_share`, as `share` gives it.
        """
        chats = [
            each for each in self.turns if each.workload.mode == "create" and each.workload.type == "text"
        ]
        tunes = [each for each in self.turns if each.workload.mode == "finetune"]
        found: dict[str, float | None] = {}
        for prefix, which in (("", "all"), ("first_", "first"), ("continued_", "continued")):
            some = [each for each in chats if _is(each, which)]
            for measure in ("wait", "start", "first_token"):
                found |= _spread(f"{prefix}{measure}", some, measure)
        found |= _spread("finetune_start", tunes, "start")
        found |= self._counts(tunes)
        if within_ms is not None:
            good = sum(_within(each, "first_token", within_ms) for each in chats)
            found["goodput_per_gpu_hour"] = _ratio(good, self.gpu_hours)
            for prefix, which in (("", "all"), ("first_", "first"), ("continued_", "continued")):
                found[f"{prefix}first_token_share"] = self.share(which, "first_token", within_ms)
        return found

    def share(self, which: str, measure: str, within_ms: int) -> float | None:
        """Return the share of chats' turns (`which`: all, first, continued) that took at most `within_ms`, 0 to 1.

        What never got so far did not. None if there are none.
        """
        some = [
            each
            for each in self.turns
            if each.workload.mode == "create" and each.workload.type == "text" and _is(each, which)
        ]
        return _ratio(sum(_within(each, measure, within_ms) for each in some), len(some))

    @property
    def gpu_hours(self) -> float:
        return self.present_ms / MS_PER_HOUR

    def _counts(self, tunes: list[Turn]) -> dict[str, float | None]:
        talks = [each for each in self.turns if each.workload.mode == "create"]
        duration_s = (self.ended_ms - self.begun_ms) / 1000
        tokens = sum(
            each.output_tokens
            for each in talks
            if each.workload.type == "text" and each.ended_ms is not None and not each.failed
        )
        done = sum(each.ended_ms is not None and not each.failed for each in tunes)
        return {
            "utilisation": _ratio(self.held_ms, self.offered_ms),
            "busy": _ratio(self.busy_ms, self.present_ms),
            "finetunes": float(len(tunes)),
            "finetunes_per_gpu_hour": _ratio(done, self.gpu_hours),
            "turns": float(len(talks)),
            "pictures": float(sum(each.workload.type == "image" for each in talks)),
            "unfinished": float(sum(each.ended_ms is None or each.failed for each in self.turns)),
            "requeued": float(sum(each.turn > 1 and not each.straight for each in talks)),
            "preempted": float(self.preempted),
            "released": float(self.released),
            "gpu_hours": self.gpu_hours,
            "tokens_per_s": _ratio(tokens, duration_s),
            "duration_s": duration_s,
        }


def percentile(ordered: list[float], percent: float) -> float | None:
    """Return that percentile of values in order, interpolated between neighbours; None if there are none."""
    if not ordered:
        return None
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    lower, upper = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    if lower == upper or rank == below:  # both may be infinite
        return lower
    return lower + (upper - lower) * (rank - below)


def _spread(name: str, turns: Iterable[Turn], measure: Measure) -> dict[str, float | None]:
    """Return percentiles and the mean; what never got so far stands above all."""
    infinity = float("inf")
    took = sorted(infinity if (ms := each.took_ms(measure)) is None else float(ms) for each in turns)
    found = {f"{name}_p{percent}_ms": percentile(took, percent) for percent in PERCENTILES}
    found[f"{name}_mean_ms"] = _ratio(sum(took), len(took))
    return {name: None if value in (None, infinity) else value for name, value in found.items()}


def _is(turn: Turn, which: str) -> bool:
    return which == "all" or (turn.turn > 1) == (which == "continued")


def _within(turn: Turn, measure: str, within_ms: int) -> bool:
    took_ms = turn.took_ms(measure)  # type: ignore[arg-type]
    return took_ms is not None and took_ms <= within_ms


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
