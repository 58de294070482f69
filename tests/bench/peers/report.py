"""What was found, as a table of like beside like, and what must be known to read it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tests.bench.peers.found import Dispatch, Recovery, Version
from tests.bench.peers.killing import TASKS, WORK_S
from tests.bench.peers.sides import HELIX, RAY, TASKIQ, Ran

KEPT = {HELIX: "disk, fsync", RAY: "memory", TASKIQ: "disk, fsync"}
HEADINGS = (
    "system",
    "how",
    "measured",
    "p50 ms",
    "p99 ms",
    "tasks/s",
    "done",
    "failed",
    "lost",
    "again after s",
    "kept on",
)
NONE = "–"
READING = (
    "Helix does more for a task than the others: it makes a session with a place on a GPU, which later turns find "
    "again, and stores each step. HTTP: POST /sessions, then its event stream to the end; log: two appends, then the "
    "fact that the turn is completed.",
    "Ray Serve stores nothing: what runs or waits is gone with its process. Helix and taskiq-nats: a nats-server each, "
    "the same configuration, sync_interval always.",
    "taskiq-nats as it comes: clients look for their result every 200 ms, and its bucket of results has the server's "
    "limit of consumers, of which each look at a result makes one. Tuned: every 1 ms (1 at once) or 100 ms (64), the "
    "best found, and 100,000 consumers. After ack_wait (default 30 s) a task is delivered again, even while it runs.",
    f"kill -9: {TASKS} tasks of {WORK_S:.0f} s, the worker that has most is killed; the row counts the tasks it had. "
    "'failed': the client got an error and sent the task again itself. 'again after' includes that second of work.",
)

Cells = tuple[str, ...]


def table(ran: Sequence[Ran]) -> Table:
    """Return HTTP beside HTTP, then the ways without it, then what a kill did."""
    made = Table(*HEADINGS, box=None, pad_edge=False)
    for heading in made.columns[3:10]:
        heading.justify = "right"
    for section in (_dispatched(ran, http=True), _dispatched(ran, http=False), _recovered(ran)):
        for cells in section:
            made.add_row(*cells)
        made.add_row()
    return made


def _dispatched(ran: Sequence[Ran], *, http: bool) -> list[Cells]:
    rows = [
        (each.concurrent, _dispatch(side.system, each))
        for side in ran
        for each in side.found
        if isinstance(each, Dispatch) and (each.how == "HTTP") == http
    ]
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def _dispatch(system: str, found: Dispatch) -> Cells:
    p50, p99 = (NONE if ms is None else f"{ms:.1f}" for ms in (found.p50_ms, found.p99_ms))
    return (
        *(system, found.how, f"{found.concurrent} at once", p50, p99, f"{found.per_s:.0f}"),
        *(f"{found.tasks}", f"{found.failed}", NONE, NONE, KEPT[system]),
    )


def _recovered(ran: Sequence[Ran]) -> list[Cells]:
    return [_recovery(side.system, each) for side in ran for each in side.found if isinstance(each, Recovery)]


def _recovery(system: str, found: Recovery) -> Cells:
    again = (
        NONE
        if found.first_s is None or found.last_s is None
        else f"{found.first_s:.1f} to {found.last_s:.1f}"
    )
    lost = found.in_flight - found.answered
    return (
        *(system, found.how, "kill -9", NONE, NONE, NONE),
        *(f"{found.answered}", f"{found.failed}", f"{lost}", again, KEPT[system]),
    )


def notes(ran: Sequence[Ran]) -> list[str]:
    """Return what the figures do not say by themselves, then what went wrong."""
    versions = {side.system: f.version for side in ran for f in side.found if isinstance(f, Version)}
    measured = (
        ", ".join(f"{system} {version}" for system, version in versions.items()) or "nothing was measured"
    )
    shared = (
        "one after the other on this machine, its cores shared by the clients, the broker and the workers"
    )
    return ["", f"{measured}; {shared}.", *READING, *_errors(ran)]


def _errors(ran: Sequence[Ran]) -> list[str]:
    said = []
    for side in ran:
        if side.wrong:
            said.append(
                f"{side.system}: {side.wrong}" if side.absent else f"{side.system} BROKE: {side.wrong}"
            )
        for each in side.found:
            if isinstance(each, Recovery) and each.failed:
                told = f"told after {each.told_s:.2f} s" if each.told_s is not None else "told"
                said.append(
                    f"{side.system}, {each.how}: {each.failed} of {each.in_flight} {told}: {each.error}"
                )
            elif isinstance(each, Dispatch) and each.failed:
                said.append(
                    f"{side.system}, {each.how}, {each.concurrent} at once: {each.failed} failed: {each.error}"
                )
    return list(dict.fromkeys(said))
