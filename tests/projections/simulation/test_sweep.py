"""A sweep answers every combination, the same in any number of processes, and ends whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.axis import Axis, altered, points
from helix_projections.simulation.crew import Crew, SimulationFailed
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.shop import simulate
from helix_projections.simulation.sweep import Question, answer, spaced, sweep
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals

ROOT = Path(__file__).parents[3]


def untold(done: int, total: int) -> None:
    """Tell nobody."""


def axis(setting: str, *values: float, of: str = "") -> Axis:
    return Axis(setting=setting, of=of, values=values)  # type: ignore[arg-type]


def test_points_are_all_combinations_the_last_axis_fastest() -> None:
    axes = (axis("gpus", 1, 2, of="a100-80"), axis("reserved", 0, 1))
    assert [tuple(point.values()) for point in points(axes)] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert points(()) == [{}]


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    cpus = uniform(1, WORK, slots=2, kind="cpu")
    base = Scenario(offers=uniform(3, WORK, slots=2) + cpus, policy=e.Policy(idle_after_ms=7_000, attempts=9))
    axes = (
        axis("gpus", 2, of="a100-80"),
        axis("gpus", 1, of="l4-24"),
        axis("coefficient", 8, of="mistral"),
        axis("coefficient", 3, of="l4-24/mistral"),
        axis("reserved", 1),
        axis("slots_per_owner", 5),
    )
    makes = {kind: uniform(1, WORK, slots=1, kind=kind) for kind in ("a100-80", "l4-24")}
    made = altered(base, axes, points(axes)[0], makes)
    assert [offer.gpu for offer in made.offers] == ["cpu-0", "a100-80-0", "a100-80-1", "l4-24-0"]
    assert made.policy.coefficients == {"cpu/mistral": 8, "a100-80/mistral": 8, "l4-24/mistral": 3}
    assert (made.policy.reserved, made.policy.slots_per_owner) == (1, 5)
    assert (made.policy.idle_after_ms, made.policy.attempts) == (7_000, 9)
    assert altered(base, axes, {}, makes) == base


def question() -> Question:
    return Question(
        base=Scenario(offers=[], open_ms=OPEN_MS),
        axes=(axis("gpus", 1, 3, of="a100-80"), axis("coefficient", 1, 4, of="mistral")),
        makes={"a100-80": uniform(1, WORK, slots=1)},
    )


def test_two_processes_find_what_one_finds_in_the_same_order() -> None:
    turns, asked = arrivals(5, sessions=60, gap_ms=400), question()
    at, told = points(asked.axes), []
    alone = sweep(asked, turns, at, processes=1, told=untold)
    together = sweep(asked, turns, at, processes=2, told=lambda done, total: told.append((done, total)))
    assert together == alone
    assert [each.point for each in together] == at
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    waits = [each.measures["wait_p95_ms"] for each in alone]
    assert waits[0] > waits[-1]  # type: ignore[operator]


def test_thinning_keeps_whole_sessions_with_their_pauses() -> None:
    turns = arrivals(1, sessions=40, gap_ms=500)
    kept = list(spaced(turns, 1.0, 4))
    sessions = list(dict.fromkeys(each.session for each in turns))
    assert {each.session for each in kept} == set(sessions[::4])
    assert kept == [each for each in turns if each.session in set(sessions[::4])]


def test_the_parts_of_a_thinned_trace_are_all_of_it_and_their_outcomes_are_pooled() -> None:
    turns = arrivals(1, sessions=40, gap_ms=500)
    parts = [list(spaced(turns, 1.0, 4, part)) for part in range(4)]
    assert sorted((each.session, each.turn) for part in parts for each in part) == sorted(
        (each.session, each.turn) for each in turns
    )
    asked = Question(
        base=Scenario(offers=uniform(1, WORK, slots=1), open_ms=OPEN_MS), axes=(axis("thin", 4),), samples=9
    )
    whole = answer(asked, turns, {"thin": 4.0}).measures
    each = [simulate(asked.base, part).measures() for part in parts]
    assert whole["turns"] == len(turns)
    assert whole["gpu_hours"] == pytest.approx(sum(one["gpu_hours"] or 0 for one in each))
    assert whole["wait_mean_ms"] == pytest.approx(
        sum((one["wait_mean_ms"] or 0) * (one["turns"] or 0) for one in each) / len(turns)
    )


def test_stretching_multiplies_times_of_turns_and_leaves_batch_jobs() -> None:
    job = Arrival(
        at_ms=900, session="j", turn=1, work_ms=5, workload=e.Workload("finetune", "text", "mistral")
    )
    turn = Arrival(at_ms=600, session="s", turn=1)
    assert [(each.session, each.at_ms) for each in spaced([turn, job], 2.0, 1)] == [("j", 900), ("s", 1200)]


class Fails:
    """Work that does what its job says."""

    def __call__(self) -> Callable[[str], str]:
        return self.work

    def work(self, job: str) -> str:
        if job == "raise":
            raise ValueError("a broken thing")
        if job == "die":
            os._exit(9)
        return job.upper()


def test_what_goes_wrong_in_a_process_is_told_with_its_point() -> None:
    with Crew(Fails(), 2) as crew, pytest.raises(SimulationFailed, match=r"raise: .*a broken thing"):
        crew.run(["a", "raise", "b"])


def test_a_process_that_dies_ends_the_sweep_instead_of_hanging_it() -> None:
    with Crew(Fails(), 2) as crew:
        assert crew.run(["a", "b", "c"]) == ["A", "B", "C"]
        with pytest.raises(SimulationFailed, match="die: its process ended with 9"):
            crew.run(["a", "die", "b"])


ENDLESS = """
import os, signal, sys
from helix_projections.simulation.crew import Crew

def begin():
    return wait

def wait(job):
    print(os.getpid(), flush=True)
    signal.pause()

if __name__ == "__main__":
    try:
        with Crew(begin, 2) as crew:
            crew.run([1, 2, 3])
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_ends_all_processes_at_once(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        members = [int(process.stdout.readline()) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == b""
    for member in members:
        with pytest.raises(ProcessLookupError):
            os.kill(member, 0)
