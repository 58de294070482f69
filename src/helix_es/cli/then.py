"""A picture of the shop on the terminal: the columns of `helix top`, without what only heartbeats tell."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from helix_es.cli.instants import lasted
from helix_es.cli.pictured import Picture, policy_words
from helix_es.cli.show import Table, pool_table

if TYPE_CHECKING:
    from rich.console import RenderableType


def screen(shown: Picture) -> RenderableType:
    """Return everything of one instant."""
    from rich.console import Group
    from rich.text import Text

    now = datetime.fromisoformat(shown.at)
    ready = [gpu for gpu in shown.gpus if gpu.state == "ready"]
    slots, held = sum(gpu.slots for gpu in ready), sum(gpu.slots_used for gpu in ready)
    waiting = sum(line.waiting for line in shown.queue)
    head = f"{len(ready)} of {len(shown.gpus)} GPUs ready   {held}/{slots} slots held   {waiting} waiting"
    pools = [msgspec.to_builtins(pool) for pool in shown.pools if pool.max is not None]
    aside = f"   {shown.set_aside} records set aside" if shown.set_aside else ""
    return Group(
        Text.assemble((f"Helix  {now:%Y-%m-%d %H:%M:%S} UTC   ", "bold"), head),
        Text(f"{shown.log}, sequence {shown.seq} stored at {shown.recorded_at}{aside}", style="dim"),
        *part("The floor", gpu_table(shown, now), "no GPU was there"),
        *(part("Pools", pool_table(pools), "") if pools else ()),
        *part("The door", door_table(shown), "nothing was served and nobody waited"),
        *part("Who waited", waiting_table(shown, now), "nobody"),
        *part("Bindings", binding_table(shown, now), "none"),
        *part("Owners", owner_table(shown), "none"),
        *part(
            f"Rules{_since(shown)}",
            (["RULE", "VALUE"], [list(row) for row in policy_words(shown.policy)]),
            "",
        ),
    )


def _since(shown: Picture) -> str:
    return f" (set at sequence {shown.policy_seq})" if shown.policy_seq else " (the defaults)"


def part(title: str, table: Table, empty: str) -> Iterator[RenderableType]:
    """Yield a heading and a table, or what to say instead of an empty one."""
    from rich.table import Table as Grid
    from rich.text import Text

    from helix_es.cli.talk import printable

    columns, rows = table
    yield Text(f"\n{title}", style="bold")
    if not rows:
        yield Text(empty, style="dim")
        return
    grid = Grid(*columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        grid.add_row(*(Text(printable(str(cell))) for cell in row))
    yield grid


def gpu_table(shown: Picture, now: datetime) -> Table:
    """Return the GPUs with who was bound to them."""
    columns = ["GPU", "KIND", "STATE", "FOR", "MODEL", "SLOTS", "SINCE"]
    return columns, [
        [
            gpu.gpu,
            gpu.kind,
            gpu.state if gpu.next is None else f"{gpu.state} for {gpu.next}",
            gpu.purpose or "-",
            gpu.model or "-",
            f"{gpu.slots_used}/{gpu.slots}",
            _ago(gpu.state_at, now),
        ]
        for gpu in shown.gpus
    ]


def door_table(shown: Picture) -> Table:
    """Return a line for each queue."""
    columns = ["MODE", "TYPE", "MODEL", "SLOTS", "BOUND", "FREE", "WAITING"]
    return columns, [[getattr(line, column.lower()) for column in columns] for line in shown.queue]


def waiting_table(shown: Picture, now: datetime) -> Table:
    """Return everybody who waited, queue by queue."""
    columns = ["MODE", "MODEL", "PLACE", "SESSION", "OWNER", "TURN", "PRIORITY", "WAITED", "WAIT", "TOLD"]
    return columns, [
        [
            line.mode,
            line.model,
            each.position,
            each.session_id,
            f"{each.owner} (at the limit)" if each.barred else each.owner,
            f"{each.turn}, again" if each.attempt else each.turn,
            each.priority,
            _ago(each.queued_at, now),
            _wait(each.wait_s),
            _wait(each.told_s),
        ]
        for line in shown.queue
        for each in line.sessions
    ]


def _ago(at: str, now: datetime) -> str:
    return lasted(max(0, round((now - datetime.fromisoformat(at)).total_seconds() * 1000)))


def _wait(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def binding_table(shown: Picture, now: datetime) -> Table:
    """Return every session that had a slot."""
    columns = ["GPU", "SESSION", "OWNER", "MODE", "MODEL", "STATE", "TURN", "ATTEMPT", "SINCE"]
    rows: list[list[Any]] = []
    for each in shown.bindings:
        turn = [each.state, each.turn, each.attempt, _ago(each.state_at, now)]
        rows.append([each.gpu or "(any)", each.session_id, each.owner, each.mode, each.model, *turn])
    return columns, rows


def owner_table(shown: Picture) -> Table:
    """Return what each owner had."""
    return ["OWNER", "HELD", "WAITING"], [[each.owner, each.held, each.waiting] for each in shown.owners]
