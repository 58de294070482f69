"""The figures of a run, and the lines that its log is kept as."""

from __future__ import annotations

from pathlib import Path

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import encode
from tests.chaos.collect import Line, load, recorded, save
from tests.chaos.failover import by_cause, failovers
from tests.chaos.figures import figures
from tests.chaos.spread import spread
from tests.chaos.story import STEP_MS, Story
from tests.chaos.told import Run, Strike


def beat(name: str, at_ms: int, *, active: bool = True) -> e.Recorded:
    event = e.SchedulerBeat(scheduler=name, active=active, seq=1)
    return e.Recorded(at_ms, at_ms, "beat.scheduler", event)


def strike(kind: str, process: str, at_ms: int) -> Strike:
    return Strike(number=0, action="kill", kind=kind, process=process, at_ms=at_ms, back_ms=at_ms + 50)


def test_a_failover_is_from_the_last_beat_of_one_to_the_first_of_the_next() -> None:
    beats = [beat("a", 0), beat("b", 100, active=False), beat("a", 250), beat("b", 1500), beat("b", 1750)]
    found = failovers(beats, [strike("scheduler", "scheduler-0", 300)])
    assert [(each.gap_ms, each.cause) for each in found] == [(1250, "kill scheduler-0")]


def test_a_failover_says_whether_the_broker_was_struck_too() -> None:
    struck = [strike("nats", "nats-1", 100), strike("scheduler", "scheduler-0", 200)]
    found = failovers([beat("a", 0), beat("b", 9000)], struck)
    assert found[0].cause == "kill scheduler-0, kill nats-1"


def test_a_failover_says_whether_there_was_a_standby() -> None:
    struck = [strike("scheduler", "scheduler-1", 100), strike("scheduler", "scheduler-0", 2000)]
    found = failovers([beat("a", 1900), beat("b", 4000)], struck)
    assert not found[0].standby
    assert list(by_cause(found)) == ["both struck, none to take over"]


def test_the_spread_of_nothing_is_nothing() -> None:
    assert spread([]).count == 0
    assert spread([3, 1, 2]).p50 == 2


def test_a_recovery_is_from_the_strike_to_the_next_start() -> None:
    story = Story()
    story.serving("sim-0-0", 1)
    story.serving("sim-1-0", 1)
    story.begin("s1", "sim-0-0")
    struck = strike("simulated", "simulated-0", len(story.records) * STEP_MS + 1)
    story.lose("sim-0-0")
    story.release("s1", "sim-0-0", "lost")
    story.admit("s1", 1, 2)
    again = story.start("s1", "sim-1-0", 1, 2)
    story.complete("s1", "sim-1-0", 1, 2)
    run = Run(seed=1, turns=1, told=story.told, strikes=[struck])
    found = figures(run, story.records, [], story.proof())
    assert found.recovery_ms["kill simulated"].most == again * STEP_MS - struck.at_ms
    assert found.requeued == {"lost": 1}
    assert found.attempts == {2: 1}
    assert found.ends == {"turn.completed": 1}


def test_a_log_is_kept_as_lines_and_read_again(tmp_path: Path) -> None:
    story = Story()
    story.serving("sim-0", 1)
    lines = [
        Line(record.seq, record.at_ms, record.subject, msgspec.Raw(encode(record.event)))
        for record in story.records
        if record.event is not None
    ]
    save([*lines, Line(9, 9, "session.s1.closed", msgspec.Raw(b'"junk"'))], tmp_path / "log.jsonl")
    again = list(recorded(load(tmp_path / "log.jsonl")))
    assert again[:-1] == story.records
    assert again[-1].event is None
