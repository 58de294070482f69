"""A stretch at the door in words: who was ahead, why no GPU helped, what came free, which decision ended it."""

from __future__ import annotations

from collections.abc import Iterator

from helix_es.cli.instants import clock, lasted
from helix_es.core.story import Ahead, Change, Obstacle, Passed, Wait

NAMED = 8  # GPUs, or sessions on a GPU, that are named in a line
EDGE = 4  # changes of the slots that have a line of their own, of the first and of the last
PEOPLE = 6  # of those ahead, and of those who passed, that have a line of their own
LOOKS_MS = 300  # a scheduler that is awake looks four times a second
STALLED_MS = 2_000
AHEAD = {
    "earlier": "earlier",
    "priority": "higher priority",
    "fair_share": "came later, its owner had less than its share",
    "came_back": "had been served before and came back",
}
PASSED = {
    "priority": "higher priority",
    "fair_share": "its owner had had less than its share",
    "came_back": "had been served before and came back",
    "owner_limit": "this owner held as many slots as one may",
    "decided_before": "that was decided before this turn came",
    "behind": "though it stood behind by the rules of this release",
}
# in the order in which they are said: what nearly helped first
OBSTACLES = {
    "free": "free: the scheduler had only to look",
    "promised": "with room that is promised to {promised}",
    "loading": "loading {model}",
    "draining_for_it": "ending other work first, then for {model}",
    "reserved": "kept for batch work",
    "batch": "at batch work beyond the reservation",
    "other_work": "for {model}",
    "unassigned": "not assigned yet",
    "draining": "draining for {model}",
    "leaving": "leaving",
    "failed_to_load": "given up for a while, since it could not load the model",
    "full": "full",
    "no_slots": "given no slots for it by the rules",
    "unfit": "unable to run it",
}
UNUSED = frozenset({"reserved", "batch", "other_work"})
RELEASED = {
    "idle": "silent too long while others waited",
    "drained": "its GPU was to do other work or leave",
    "lost": "its GPU was lost",
    "restarted": "its GPU's runner started anew",
    "closed": "the session was closed",
    "ended": "the batch work was done",
    "preempted": "chats needed the GPU that it had borrowed",
    "returned": "the runner gave it back",
}
ENDED = {
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "closed": "ended with the session",
}
FREED = {
    "idle": "silent sessions",
    "closed": "closed sessions",
    "ended": "batch work that ended",
    "drained": "drained sessions",
    "lost": "sessions whose GPU was lost",
    "preempted": "batch work that gave way",
    "returned": "turns that were given back",
    "gpu.ready": "GPUs that were ready",
    "gpu.assigned": "GPUs that were given more",
}


def wait_lines(wait: Wait, *, batch: bool) -> Iterator[str]:
    """Yield what is to be said of one stretch; `batch`: it waits for batch work."""
    again = (
        "" if wait.because == "said" else f" again at {clock(wait.at_ms)}, since {RELEASED[wait.because]},"
    )
    long = "still waits" if wait.lasted_ms is None else f"waited {lasted(wait.lasted_ms)}"
    yield f"  {long}{again} from place {wait.place}; {_told(wait)}"
    yield from (
        f"    {line}" for line in _people("ahead", [_ahead(each) for each in wait.ahead], wait.place - 1)
    )
    if wait.owner_most and wait.owner_held >= wait.owner_most:
        barred = f", for {lasted(wait.barred_ms)} of the wait" if wait.barred_ms else ""
        yield f"    its owner held {count(wait.owner_held, 'slot')} and may hold {wait.owner_most}{barred}"
    yield f"    the floor then: {count(wait.slots, 'slot')}, {wait.free} free"
    yield from (f"      {line}" for line in _floor(wait))
    yield from (f"    {line}" for line in _meanwhile(wait))
    yield from (f"    {line}" for line in _stalled(wait))
    if wait.decision is not None:
        yield from (f"    {line}" for line in _decision(wait, batch=batch))
    elif wait.end is not None and wait.ended_ms is not None:
        yield f"    {ENDED[wait.end]} at the door at {clock(wait.ended_ms)}"


def _told(wait: Wait) -> str:
    if wait.told_ms is None:
        return "told nothing: no GPU served it or was about to"
    if wait.lasted_ms is None:
        return f"told {lasted(wait.told_ms)}"
    error_ms = wait.lasted_ms - wait.told_ms
    word = "longer" if error_ms > 0 else "shorter"
    exact = abs(error_ms) <= 50
    return f"told {lasted(wait.told_ms)}" + ("" if exact else f", it was {lasted(abs(error_ms))} {word}")


def _ahead(ahead: Ahead) -> str:
    priority = f" {ahead.priority}" if ahead.why == "priority" else ""
    return f"{ahead.session}#{ahead.turn} ({ahead.owner}: {AHEAD[ahead.why]}{priority})"


def named(words: list[str], total: int) -> str:
    """Return the first of `words`, and how many more there are of `total`."""
    more = total - min(NAMED, len(words))
    return "; ".join(words[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _promised(wait: Wait) -> str:
    """Say whose the slots are that are neither held nor free."""
    room = sum(max(0, each.slots - each.held) for each in wait.obstacles if each.why in ("free", "promised"))
    admitted = room - wait.free
    words = (
        [f"{count(admitted, 'turn')} that {'was' if admitted == 1 else 'were'} admitted"]
        if admitted > 0
        else []
    )
    if wait.place > wait.free > 0:
        words.append("turns ahead")
    return " and to ".join(words) or "turns ahead"


def _floor(wait: Wait) -> Iterator[str]:
    """Yield a line for each reason that GPUs have in common."""
    obstacles, now_ms = wait.obstacles, wait.at_ms
    if not obstacles:
        yield "no GPU was there"
    for why, words in OBSTACLES.items():
        models = sorted({each.model or "-" for each in obstacles if each.why == why})
        if "{model}" not in words:
            models = models[:1]
        for model in models:
            alike = [
                each
                for each in obstacles
                if each.why == why and ("{model}" not in words or (each.model or "-") == model)
            ]
            gpus = count(len(alike), "GPU")
            free = sum(max(0, each.slots - each.held) for each in alike) if why in UNUSED else 0
            unused = f" ({count(free, 'slot')} free, of no use here)" if free else ""
            named = "" if why == "unfit" else f": {_gpus(alike, now_ms)}"
            yield f"{gpus} {words.format(model=model, promised=_promised(wait))}{unused}{named}"


def _people(heading: str, words: list[str], total: int) -> Iterator[str]:
    """Yield a line for each of the first; one alone stands behind the heading."""
    if len(words) == 1:
        yield f"{heading}: {words[0]}"
    elif words:
        yield f"{heading}: {total}"
        yield from (f"  {each}" for each in words[:PEOPLE])
        if total > PEOPLE:
            yield f"  and {total - PEOPLE} more"


def _gpus(alike: list[Obstacle], now_ms: int) -> str:
    words = [_gpu(each, now_ms) for each in alike]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _gpu(each: Obstacle, now_ms: int) -> str:
    held = f"holds {each.held}" if each.held > each.slots or not each.slots else f"{each.held}/{each.slots}"
    since = "" if each.since_ms is None else f", for {lasted(max(0, now_ms - each.since_ms))}"
    return f"{each.gpu} ({held}{since})"


def _meanwhile(wait: Wait) -> Iterator[str]:
    if wait.freed or wait.served_ahead or wait.passed_by or wait.resized:
        came = f"{count(wait.freed, 'slot')} came free meanwhile"
        yield f"{came}{_sources(wait)}; {count(wait.served_ahead, 'turn')} from ahead admitted"
    yield from (f"  {line}" for line in _changes(wait))
    yield from _people("passed by", [_passed(each) for each in wait.passed], wait.passed_by)


def _changes(wait: Wait) -> Iterator[str]:
    """Yield a line for each change of the slots; of many for the first and the last, and how many are between."""
    kept = [each for each in wait.changes if each.slots]
    words = [f"{clock(each.at_ms)} {_change(each)}" for each in kept]
    more = wait.resized - 2 * EDGE
    if more <= 1:  # a line that leaves one out is no shorter
        yield from words
        return
    yield from words[:EDGE]
    yield f"… {more} more from {clock(kept[EDGE].at_ms)} to {clock(kept[-EDGE - 1].at_ms)}"
    yield from words[-EDGE:]


def count(number: int, noun: str) -> str:
    """Return so many of them."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _sources(wait: Wait) -> str:
    """Say whose the slots were."""
    words = [
        f"{freed} of {FREED.get(source) or RELEASED.get(source, source)}"
        for source, freed in wait.freed_by.items()
    ]
    return f" ({', '.join(words)})" if words else ""


def _change(change: Change) -> str:
    count = (
        f"{abs(change.slots)} slot{'s' * (abs(change.slots) != 1)} {'more' if change.slots > 0 else 'fewer'}"
    )
    what = {
        "gpu.ready": "was ready",
        "gpu.lost": "was lost",
        "gpu.left": "left",
        "gpu.joined": "came back",
        "gpu.assigned": "was assigned",
    }.get(change.what, change.what)
    reason = f" ({change.reason})" if change.reason else ""
    return f"{change.gpu} {what}{reason}: {count}"


def _passed(passed: Passed) -> str:
    priority = f" {passed.priority}" if passed.why == "priority" else ""
    at = f"said {clock(passed.queued_ms)}"
    return f"{passed.session}#{passed.turn} ({passed.owner}, {at}: {PASSED[passed.why]}{priority})"


def _stalled(wait: Wait) -> Iterator[str]:
    """Say what the scheduler, or the broker under it, cost."""
    decision = wait.decision
    if decision is not None and decision.at_ms - decision.decided_at_ms > LOOKS_MS:
        late = lasted(decision.at_ms - decision.decided_at_ms)
        yield f"its decision was stored {late} after it was made: the scheduler or the broker stood still"
    elif wait.slot_there_ms > LOOKS_MS:
        yield (
            f"a slot was there for it for {lasted(wait.slot_there_ms)}: the scheduler did not look or could not write"
        )
    elif wait.undecided_ms > STALLED_MS and 2 * wait.undecided_ms > (wait.lasted_ms or 0):
        yield f"for {lasted(wait.undecided_ms)} of it nothing at all was decided, about anybody"


def _decision(wait: Wait, *, batch: bool) -> Iterator[str]:
    decision = wait.decision
    if decision is None:
        return
    attempt = f", attempt {decision.attempt}" if decision.attempt > 1 else ""
    yield (
        f"admitted {clock(decision.at_ms)} (sequence {decision.seq}{attempt}), decided from sequence "
        f"{decision.decided_seq} at {clock(decision.decided_at_ms)}: {decision.reason}"
    )
    if decision.reservation_ms:
        kept = "held by chats" if batch else "kept for batch work"
        while_s = f"{lasted(decision.reservation_ms)} {'since it was said' if attempt else 'of the wait'}"
        yield f"for {while_s} a GPU that could have served it was {kept}"
