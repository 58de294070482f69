"""A sweep of 64 points on all cores: how much faster than in one process, and how busy the cores are."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

from helix_es.core import events as e
from helix_projections.simulation.axis import Axis, points
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.sweep import Question, sweep
from helix_projections.simulation.traces import read_trace
from tests.bench.row import Row

TRACE = Path(__file__).parents[1] / "data/traces/mooncake_conversation_sessions.csv"
WORK = e.Workload("create", "text", "mistral")
OPEN_MS = 20_000  # the weights are loaded by then
AXES = (
    Axis(setting="thin", values=(8,)),  # an eighth of the trace: the bench is to take half a minute, not five
    Axis(setting="gpus", of="a100-80", values=(4, 6, 8, 12)),
    Axis(setting="coefficient", of="mistral", values=(4, 8, 16, 24, 32, 40, 48, 56)),
    Axis(setting="reserved", values=(0, 1)),
)


class Run(NamedTuple):
    """One sweep."""

    wall_s: float
    cpu_s: float
    """Of this process and its children."""
    answers: list[object]


def swept(processes: int) -> Run:
    """Return what the 64 points cost in so many processes, starting them included."""
    question = Question(
        base=Scenario(offers=[], open_ms=OPEN_MS),
        axes=AXES,
        makes={"a100-80": uniform(1, WORK, slots=1, batch=True)},
    )
    arrivals = list(read_trace(TRACE))
    before_s, begun_s = _cpu_s(), time.perf_counter()
    answers = sweep(question, arrivals, points(AXES), processes=processes, told=lambda done, total: None)
    return Run(time.perf_counter() - begun_s, _cpu_s() - before_s, list(answers))


def _cpu_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def sweep_rows() -> list[Row]:
    """One row: 64 points in one process, and on all cores."""
    cores = len(os.sched_getaffinity(0))
    alone = swept(1)
    together = min((swept(cores) for _ in range(2)), key=lambda run: run.wall_s)  # others only ever slow it
    times, busy = alone.wall_s / together.wall_s, together.cpu_s / together.wall_s / cores
    same = "the same answers" if alone.answers == together.answers else "OTHER ANSWERS"
    return [
        Row(
            f"sweep of 64 points over an eighth of the Mooncake trace, on {cores} cores",
            f"{together.wall_s:.1f} s = {times:.2f} × as fast as one process ({alone.wall_s:.1f} s), "
            f"cores busy {busy:.0%}, {same}",
            f"both cores: ≥ {0.8 * cores:.1f} ×",
            times >= 0.8 * cores and alone.answers == together.answers,
        )
    ]


if __name__ == "__main__":
    for row in sweep_rows():
        print(f"{row.what}: {row.found} (promised {row.promised}: {'kept' if row.kept else 'BROKEN'})")
