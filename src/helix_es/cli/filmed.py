"""`helix replay --follow`: the film in the terminal, or a line for each fact where there is none."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from helix_es.cli.archives import Source
from helix_es.cli.facts import said, weighty
from helix_es.cli.film import Clock, Film, Frame, Stretch, Wall, counts
from helix_es.cli.instants import Ago, At, Seq, When, clock, lasted, rfc3339
from helix_es.cli.seek import seek
from helix_es.core.errors import Misconfigured
from helix_es.core.occupancy import Occupancy
from helix_es.core.timeline import Timeline

if TYPE_CHECKING:
    from rich.live import Live as Screen

REMEMBERED = 40  # facts: more than any terminal shows


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to play, and how."""

    start: When | None = None
    end: When | None = None
    speed: float = 60.0
    as_json: bool = False


async def play(source: Source, wanted: Wanted, wall: Clock | None = None) -> None:
    """Play it until its end or Ctrl-C. Raises Rejected for a beginning that is not in the log."""
    wall = wall or Wall()
    film = Film(wall)
    timeline = Timeline(source.archive.read, watch=film.note)
    try:
        stretch = await _stretch(timeline, source, wanted, wall)
        first = await _first(timeline, source, wanted, wall)
        if first.now_ms > stretch.end_ms or first.seq > stretch.end_seq:
            raise Misconfigured("--to is before --from: there is nothing to play")
        frames = film.frames(timeline, first, stretch)
        if wanted.as_json or not sys.stdout.isatty():
            async for frame in frames:
                _tell(frame, as_json=wanted.as_json)
        else:
            await _watch(frames, source, wanted)
    except asyncio.CancelledError:
        task = asyncio.current_task()  # Ctrl-C is how one leaves
        if task is not None:
            task.uncancel()
    finally:
        await timeline.close()


async def _stretch(timeline: Timeline, source: Source, wanted: Wanted, wall: Clock) -> Stretch:
    """Return how far to play."""
    stretch = Stretch(speed=wanted.speed, live=source.live)
    match wanted.end:
        case Seq(seq):
            return stretch._replace(end_seq=seq)
        case At(ms):
            return stretch._replace(end_ms=ms)
        case Ago(ms):
            end_ms = wall.now_ms() if source.live else (await timeline.end()).folded_ms
            return stretch._replace(end_ms=end_ms - ms)
        case None:
            return stretch


async def _first(timeline: Timeline, source: Source, wanted: Wanted, wall: Clock) -> Occupancy:
    """Return the state at the beginning of the film."""
    if wanted.start is None:
        return await timeline.at_seq(1)
    return await seek(timeline, wanted.start, live=source.live, now_ms=wall.now_ms())


# -- a line each


def _tell(frame: Frame, *, as_json: bool) -> None:
    if frame.trouble:
        print(f"helix: {frame.trouble}", file=sys.stderr)
    elif as_json:
        _print_json(frame)
    else:
        _print(frame)


def _print(frame: Frame) -> None:
    """Print what happened; of a first frame the shop."""
    from helix_es.cli.talk import printable

    if frame.cut_ms:
        print(f"{'':12}  {'':>9}  … {lasted(frame.cut_ms)} without a fact are left out")
    for record, then in frame.happened:
        shop = f"{then.held}/{then.slots} held  {then.waiting} waiting"
        print(f"{clock(record.at_ms)}  {record.seq:>9}  {shop:<26}  {printable(said(record))}")
    sys.stdout.flush()


def _print_json(frame: Frame) -> None:
    """Print the frame as one line of JSON."""
    shop = counts(frame.state)
    facts = [
        {"seq": each.seq, "at": rfc3339(each.at_ms), "subject": each.subject, "said": said(each)}
        for each, _ in frame.happened
    ]
    line: dict[str, Any] = {"at": rfc3339(frame.state.now_ms), "seq": frame.state.seq, **shop._asdict()}
    line |= {"cut_ms": frame.cut_ms, "facts": facts}
    print(msgspec.json.encode(line).decode(), flush=True)


# -- a terminal


async def _watch(frames: Any, source: Source, wanted: Wanted) -> None:
    """Draw each frame in place; the last one stays."""
    from rich.console import Console
    from rich.live import Live

    from helix_es.cli.drawn import drawing

    console = Console(highlight=False)
    last: deque[str] = deque(maxlen=REMEMBERED)
    head = f"× {wanted.speed:g}   Ctrl-C ends   {source.archive.name}"
    shown: Any = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            async for frame in frames:
                _remember(last, frame)
                shown = drawing(frame.state, frame.trouble or head, list(last), console.size)
                _draw(live, shown)
    finally:
        if shown is not None:
            console.print(shown)


def _draw(live: Screen, shown: Any) -> None:
    live.update(shown, refresh=True)


def _remember(last: deque[str], frame: Frame) -> None:
    if frame.cut_ms:
        last.append(f"{'':12}  … {lasted(frame.cut_ms)} without a fact are left out")
    for record, _ in frame.happened:
        if weighty(record):
            last.append(f"{clock(record.at_ms)}  {said(record)}")
