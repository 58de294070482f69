"""`python -m tests.fidelity --minutes 10`: exit 0 if the foretold waits are within 15 % of the real ones."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from helix_es.archive import JsonLines
from helix_projections.simulation.listener import hear
from tests.fidelity.comparison import ALLOWED, Comparison, compared
from tests.fidelity.schedule import GPUS, SLOTS, schedule
from tests.fidelity.shop import played


def main() -> int:
    """Return the exit code."""
    options = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--log", type=Path, help="judge this log of an earlier run, and play nothing")
    given = options.parse_args()
    path = given.log
    if path is None:
        folder = Path("var/fidelity") / str(given.seed)
        visits = schedule(given.minutes, given.seed)
        turns = sum(len(visit.lines) for visit in visits)
        print(
            f"{len(visits)} sessions, {turns} turns, {GPUS} GPUs × {SLOTS}, {given.minutes:g} min; log: {folder}",
            file=sys.stderr,
        )
        unheard = played(visits, folder)
        if unheard:
            print(f"never answered: {', '.join(unheard)}", file=sys.stderr)
            return 1
        path = folder / "log.jsonl"
    comparison = compared(asyncio.run(hear(JsonLines(path))))
    show(comparison)
    return 0 if comparison.good else 1


def show(comparison: Comparison) -> None:
    """Print the figures."""
    fitted = comparison.fitted
    for line in fitted.lines():
        print(line)
    print(f"scheduler {fitted.decide_ms} ms, start {fitted.start_ms} ms\n")
    print(f"{'':32}{'real':>12}{'simulated':>12}{'error':>9}")
    for figure in comparison.figures:
        verdict = ("" if figure.good else f"  beyond ±{ALLOWED:.0%}") if figure.judged else "  (not judged)"
        print(f"{figure.name:32}{figure.real:12.4g}{figure.foretold:12.4g}{figure.error:+9.1%}{verdict}")


if __name__ == "__main__":
    sys.exit(main())
