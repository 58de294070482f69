"""`helix top`: the floor, the door and the newest sessions, as they change."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.client import Api, Interrupted, NoHelix, Problem, calling, url_option
from helix_es.cli.output import json_option, show_json
from helix_es.cli.show import (
    Table,
    door_table,
    gpu_table,
    group_table,
    pool_table,
    session_table,
    waiting_table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_S = 1.0  # heartbeats come once a second
SESSIONS = 20
MOST_GPUS = 20  # beyond that, those that are alike share a line
PLACES = 10  # of each queue: the sessions below it are to be seen too
QUIT = ("q", "Q", "\x03")

Picture = dict[str, list[dict[str, Any]]]


@click.command()
@url_option
@click.option("--once", is_flag=True, help="Print it once; so it does when the output is no terminal.")
@json_option
def top(url: str, once: bool, as_json: bool) -> None:
    """Watch the floor, the door and the newest sessions; q or Ctrl-C ends."""
    with calling(url) as api:
        picture = look(api)
        if as_json:
            show_json(picture)
        elif once or not sys.stdout.isatty():
            _print(url, picture)
        else:
            _watch(api, picture)


def look(api: Api) -> Picture:
    """Return what there is now."""
    return {
        "gpus": api.get("/api/v1/gpus")["data"],
        "pools": api.get("/api/v1/fleet")["data"],
        "queue": api.get("/api/v1/queue")["data"],
        "sessions": api.get("/api/v1/sessions", limit=SESSIONS)["data"],
    }


def _print(url: str, picture: Picture) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(screen(url, picture, now=datetime.now(UTC)))


def _watch(api: Api, picture: Picture) -> None:
    """Draw once a second until q; a server that stays away is said in the first line."""
    from rich.console import Console
    from rich.live import Live

    trouble, failures = "", 0
    console = Console(highlight=False)
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                began = time.monotonic()
                now = datetime.now(UTC)
                shown = screen(f"{api.url}   q ends", picture, now=now, trouble=trouble)
                live.update(shown, refresh=True)
                if pressed(max(0.0, began + min(8.0, EVERY_S * 2**failures) - time.monotonic())):
                    return
                try:
                    picture, trouble, failures = look(api), "", 0
                except (NoHelix, Interrupted, Problem) as error:
                    trouble, failures = f"{error}; trying again, this is of {now:%H:%M:%S} UTC", failures + 1
    except KeyboardInterrupt:
        return


def screen(url: str, picture: Picture, *, now: datetime, trouble: str = "") -> RenderableType:
    """Return one picture of everything."""
    from rich.console import Group
    from rich.text import Text

    from helix_es.cli.talk import printable

    gpus, queue = picture["gpus"], picture["queue"]
    first = [{**line, "sessions": line["sessions"][:PLACES]} for line in queue]
    ready = [gpu for gpu in gpus if gpu["state"] == "ready"]
    slots, held = sum(gpu["slots"] for gpu in ready), sum(gpu["slots_used"] for gpu in ready)
    waiting = sum(line["waiting"] for line in queue)
    head = f"{len(ready)} of {len(gpus)} GPUs ready   {held}/{slots} slots held   {waiting} waiting"
    state = Text(printable(trouble), style="bold red") if trouble else Text(url, style="dim")
    floor = gpu_table(gpus, now=now) if len(gpus) <= MOST_GPUS else group_table(gpus)
    pools = [pool for pool in picture["pools"] if pool["max"] is not None]
    return Group(
        Text.assemble((f"Helix  {now:%H:%M:%S} UTC   ", "bold"), head),
        state,
        *_part("The floor", floor, "no GPU is there"),
        *(_part("Pools", pool_table(pools), "") if pools else ()),
        *_part("The door", door_table(queue), "nothing is served and nobody waits"),
        *_part("", waiting_table(first), ""),
        *_part("Newest sessions", session_table(picture["sessions"], now=now), "none yet"),
    )


def _part(title: str, table: Table, empty: str) -> Iterator[RenderableType]:
    """Yield a heading and a table, or what to say instead of an empty one."""
    from rich.table import Table as Grid
    from rich.text import Text

    from helix_es.cli.talk import printable

    columns, rows = table
    if title:
        yield Text(f"\n{title}", style="bold")
    if not rows:
        if empty:
            yield Text(empty, style="dim")
        return
    grid = Grid(*columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        grid.add_row(*(Text(printable(str(cell)), no_wrap=True, overflow="ellipsis") for cell in row))
    yield grid


@contextmanager
def _keys() -> Iterator[Any]:
    """Give a function that waits so many seconds and says whether somebody wants to quit."""
    if not sys.stdin.isatty():
        yield _slept
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: _quit_within(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _quit_within(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        typed = os.read(descriptor, 64).decode("latin-1")
        if not typed or any(key in typed for key in QUIT):
            return True
