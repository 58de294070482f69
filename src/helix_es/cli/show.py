"""`helix sessions`, `gpus`, `queue`, `models`, `adapters`: what there is, as a table or as the API says it."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Any

import rich_click as click

from helix_es.cli.capacity import show_capacities
from helix_es.cli.client import calling, url_option
from helix_es.cli.output import json_option, show_json, show_table

STATES = ["queued", "active", "idle", "released", "closed", "failed"]
PROMPT_CHARS = 40
GIB = 2**30

Row = dict[str, Any]
Table = tuple[list[str], list[list[Any]]]
"""Columns and rows."""


@click.command()
@url_option
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--type", "kind", type=click.Choice(["text", "image"]), help="Only those of this type.")
@click.option("--model", help="Only those of this model: slug or full name.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most so many.")
@click.option("--after", help="Go on after this session id.")
@json_option
def sessions(url: str, as_json: bool, kind: str | None, **filters: Any) -> None:
    """List sessions, newest first."""
    with calling(url) as api:
        page = api.get("/api/v1/sessions", type=kind, **filters)
    if as_json:
        show_json(page)
        return
    show(session_table(page["data"], now=datetime.now(UTC)))
    if page["has_more"]:
        print(f"more: helix sessions --after {page['data'][-1]['session_id']}", file=sys.stderr)


@click.command()
@url_option
@json_option
def gpus(url: str, as_json: bool) -> None:
    """List the GPUs: what each serves, how full it is, when it was heard last."""
    with calling(url) as api:
        found = api.get("/api/v1/gpus")
    if as_json:
        show_json(found)
        return
    show(gpu_table(found["data"], now=datetime.now(UTC)))
    if not found["data"]:
        print("no GPU is there; 'helix runner text' brings one", file=sys.stderr)


@click.command()
@url_option
@json_option
def queue(url: str, as_json: bool) -> None:
    """List who waits for what, and how long that will take."""
    with calling(url) as api:
        found = api.get("/api/v1/queue")
    if as_json:
        show_json(found)
        return
    show(door_table(found["data"]))
    waiting = waiting_table(found["data"])
    if waiting[1]:
        print()
        show(waiting)


@click.command()
@url_option
@click.option(
    "--explain", is_flag=True, help="How many sessions each kind of GPU may hold, and how that came about."
)
@click.option("--model", help="With --explain: only this one, by slug or full name.")
@json_option
def models(url: str, as_json: bool, explain: bool, model: str | None) -> None:
    """List the models that can be asked for, and who serves them now."""
    if model is not None and not explain:
        raise click.UsageError("--model: only together with --explain")
    with calling(url) as api:
        found = api.get("/api/v1/models/explain", model=model) if explain else api.get("/api/v1/models")
    if as_json:
        show_json(found)
    elif explain:
        show_capacities(found["data"])
    else:
        show(model_table(found["data"]))


@click.command()
@url_option
@json_option
def adapters(url: str, as_json: bool) -> None:
    """List the fine-tunes that can answer: helix chat --adapter NAME."""
    with calling(url) as api:
        found = api.get("/api/v1/adapters")
    if as_json:
        show_json(found)
        return
    show(adapter_table(found["data"], now=datetime.now(UTC)))


def show(table: Table) -> None:
    """Print a table whose cells others may have written."""
    from helix_es.cli.talk import printable

    columns, rows = table
    show_table(columns, [["" if cell is None else printable(str(cell)) for cell in row] for row in rows])


def session_table(rows: list[Row], *, now: datetime) -> Table:
    """Return sessions with their last prompt."""
    columns = ["SESSION", "STATE", "MODEL", "GPU", "TURNS", "PLACE", "AGE", "LAST PROMPT"]
    return columns, [
        [
            row["session_id"],
            row["state"],
            row["model"],
            row["gpu"] or "-",
            len(row["turns"]),
            row["queue"]["position"] if row["queue"] else "-",
            age(row["created_at"], now),
            _short(row["turns"][-1]["prompt"]) if row["turns"] else "-",
        ]
        for row in rows
    ]


def gpu_table(rows: list[Row], *, now: datetime) -> Table:
    """Return GPUs with how full they are."""
    columns = ["GPU", "KIND", "STATE", "FOR", "MODEL", "SLOTS", "MEMORY", "LOAD", "HEARD"]
    return columns, [
        [
            row["gpu"],
            row["kind"],
            row["state"],
            row["purpose"] or "-",
            row["model"] or "-",
            f"{row['slots_used']}/{row['slots']}",
            memory(row["memory_used_bytes"], row["memory_total_bytes"]),
            "-" if row["utilisation"] is None else f"{row['utilisation']:.0%}",
            age(row["heartbeat_at"], now, ago=True),
        ]
        for row in rows
    ]


def group_table(rows: list[Row]) -> Table:
    """Return GPUs that are alike in one line."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kind = tuple(row[key] or "-" for key in ("kind", "pool", "state", "purpose", "model"))
        groups.setdefault(kind, []).append(row)
    columns = ["GPUS", "KIND", "POOL", "STATE", "FOR", "MODEL", "SLOTS", "NAMES"]
    return columns, [
        [
            len(alike),
            *kind,
            f"{sum(row['slots_used'] for row in alike)}/{sum(row['slots'] for row in alike)}",
            _span([row["gpu"] for row in alike]),
        ]
        for kind, alike in sorted(groups.items())
    ]


def _span(names: list[str]) -> str:
    """Return the first and the last of `names`, by their numbers."""
    found = sorted(
        names, key=lambda name: [(int(p) if p.isdigit() else -1, p) for p in re.split(r"(\d+)", name)]
    )
    return found[0] if len(found) == 1 else f"{found[0]} … {found[-1]}"


def pool_table(rows: list[Row]) -> Table:
    """Return pools with how many GPUs they should have and have."""
    columns = ["POOL", "WANTED", "PRESENT", "READY", "LOADING", "LEAVING", "MIN", "MAX", "WHY"]
    keys = [column.lower() for column in columns[:-1]]
    return columns, [
        [*("-" if row[key] is None else row[key] for key in keys), row["reason"] or "-"] for row in rows
    ]


def door_table(rows: list[Row]) -> Table:
    """Return a line for each queue."""
    columns = ["MODE", "TYPE", "MODEL", "SLOTS", "BOUND", "FREE", "WAITING"]
    return columns, [[row[column.lower()] for column in columns] for row in rows]


def waiting_table(rows: list[Row]) -> Table:
    """Return everybody who waits, queue by queue."""
    columns = ["MODEL", "PLACE", "SESSION", "TURN", "PRIORITY", "WAIT"]
    return columns, [
        [
            row["model"],
            each["position"],
            each["session_id"] or "(another owner's)",
            each["turn"],
            each["priority"],
            "-" if each["wait_s"] is None else f"{each['wait_s']:.0f} s",
        ]
        for row in rows
        for each in row["sessions"]
    ]


def model_table(rows: list[Row]) -> Table:
    """Return the catalogue."""
    columns = ["MODEL", "NAME", "TYPE", "CONTEXT", "GPUS", "SLOTS", "WAITING"]
    keys = ["model", "name", "type", "context_tokens", "gpus", "slots", "waiting"]
    return columns, [[row[key] for key in keys] for row in rows]


def adapter_table(rows: list[Row], *, now: datetime) -> Table:
    """Return fine-tunes with what they were made of."""
    columns = ["ADAPTER", "MODEL", "SESSION", "AGE"]
    return columns, [
        [row["adapter"], row["model"], row["session_id"], age(row["created_at"], now)] for row in rows
    ]


def memory(used: int | None, total: int) -> str:
    """Return used and whole memory in GiB."""
    return f"{'-' if used is None else f'{used / GIB:.1f}'}/{total / GIB:.1f} GiB"


def age(at: str | None, now: datetime, *, ago: bool = False) -> str:
    """Return how long ago `at` was, in its largest unit."""
    if at is None:
        return "-"
    seconds = max(0.0, (now - datetime.fromisoformat(at)).total_seconds())
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}{' ago' if ago else ''}"
    return f"{seconds:.0f} s{' ago' if ago else ''}"


def _short(prompt: str) -> str:
    line = " ".join(prompt[:400].split())
    return line if len(line) <= PROMPT_CHARS else line[: PROMPT_CHARS - 1] + "…"
