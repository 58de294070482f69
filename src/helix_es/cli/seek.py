"""From an instant as a person gives it to the state there, or to what is wrong with it."""

from __future__ import annotations

import time

from helix_es.cli.instants import Ago, At, Seq, When, day_clock
from helix_es.core.errors import Rejected
from helix_es.core.occupancy import Occupancy
from helix_es.core.timeline import Timeline


async def seek(timeline: Timeline, when: When, *, live: bool, now_ms: int | None = None) -> Occupancy:
    """Return the state of `timeline` at `when`.

    Raises Rejected: it is before the beginning or after the end; and what reading the log raises.
    """
    if isinstance(when, Seq):
        return await timeline.at_seq(when.seq)
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    if live:
        end_ms = now_ms
    elif isinstance(when, Ago):
        end_ms = (await timeline.end()).folded_ms
    else:
        end_ms = None
    at_ms = when.ms if isinstance(when, At) else (end_ms or 0) - when.ms
    if end_ms is not None and at_ms > end_ms:
        raise Rejected("after_end", f"{day_clock(at_ms)} is still to come: it is {day_clock(end_ms)}")
    state = await _at_ms(timeline, at_ms)
    if not live and at_ms > state.folded_ms and await timeline.next_ms() is None:
        ends = f"the log ends at {day_clock(state.folded_ms)}, sequence {state.seq}"
        raise Rejected("after_end", f"{day_clock(at_ms)} is after the end: {ends}")
    return state


async def _at_ms(timeline: Timeline, at_ms: int) -> Occupancy:
    try:
        return await timeline.at_ms(at_ms)
    except Rejected as error:
        if error.code != "before_beginning" or timeline.first is None:
            raise
        begins = f"the log begins at {day_clock(timeline.first.at_ms)}"
        raise Rejected(error.code, f"{day_clock(at_ms)} is before the beginning: {begins}") from error
