"""`make bench-peers`: the same no-op work, dispatched by Helix, Ray Serve and taskiq-nats, as one table."""

from __future__ import annotations

import sys

import psutil
from rich.console import Console

from tests.bench.peers.report import notes, table
from tests.bench.peers.sides import OURS, THEIRS, measure


def main() -> None:
    """Measure and print; exit 1 only if a measurement broke."""
    busy = psutil.cpu_percent(interval=1)
    ran = measure(OURS + THEIRS)
    console = Console(width=150)
    console.print(table(ran))
    for note in notes(ran):
        console.print(note, markup=False, highlight=False)
    console.print(f"Before it began, this machine was {busy:.0f} % busy with other work.", highlight=False)
    sys.exit(any(each.wrong and not each.absent for each in ran))


if __name__ == "__main__":
    main()
