"""The proof that every turn ended once, and by the attempt that started last."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from tests.chaos.story import Story
from tests.chaos.told import Ack


def shop() -> Story:
    story = Story()
    story.serving("sim-0", 2)
    story.serving("sim-1", 2)
    return story


def test_a_good_log_has_no_violations() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    story.more("s1", "sim-0", 2)
    story.start("s1", "sim-0", 2)
    story.lose("sim-0")
    story.release("s1", "sim-0", "lost")
    story.admit("s1", 2, 2)
    story.start("s1", "sim-1", 2, 2)
    story.complete("s1", "sim-1", 2, 2)
    story.release("s1", "sim-1")
    story.heard("s1")
    assert story.broken() == []


def test_closing_and_a_loss_while_cancelling_end_a_turn() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.begin("s2", "sim-0")
    story.close("s1")
    story.cancelling("s2", "sim-0")
    story.release("s1", "sim-0", "closed")
    story.release("s2", "sim-0", "lost")
    proof = story.proof()
    assert proof.violations == []
    ends = [life.turns[0].end for life in proof.lives.sessions.values()]
    assert ends == ["session.closed", "session.released"]


def test_a_turn_that_never_ended_is_found() -> None:
    story = shop()
    started = story.begin("s1", "sim-0")
    assert story.broken() == [("ended once", started)]


def test_a_turn_that_ended_twice_is_found() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    again = story.complete("s1", "sim-0")
    assert story.broken() == [("ended once", again)]


def test_an_acknowledged_turn_that_is_not_in_the_log_is_found() -> None:
    story = shop()
    story.told.acks.append(Ack(session="s9", turn=1, at_ms=1))
    assert story.broken() == [("ended once", 0)]


def test_a_request_that_made_two_turns_is_found() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    story.more("s1", "sim-0", 2)
    story.start("s1", "sim-0", 2)
    story.complete("s1", "sim-0", 2)
    story.told.asked["s1"] = 1
    assert [rule for rule, _ in story.broken()] == ["asked once"]


def test_a_request_that_made_two_sessions_is_found() -> None:
    story = shop()
    for sid in ("s1", "s2"):
        story.begin(sid, "sim-0")
        story.complete(sid, "sim-0")
    story.told.visits = 1
    assert story.broken() == [("asked once", 0)]


def test_the_result_of_a_stale_attempt_is_found() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.lose("sim-0")
    story.release("s1", "sim-0", "lost")
    story.admit("s1", 1, 2)
    story.start("s1", "sim-1", 1, 2)
    stale = story.complete("s1", "sim-0", 1, 1)
    story.complete("s1", "sim-1", 1, 2)
    assert story.broken() == [("attempts", stale)]


def test_a_gap_in_the_attempts_is_found() -> None:
    story = shop()
    story.open("s1", acknowledged=False)
    skipped = story.admit("s1", 1, 2)
    assert ("attempts", skipped) in story.broken()


def test_a_start_of_an_attempt_that_was_not_admitted_is_found() -> None:
    story = shop()
    story.open("s1")
    story.admit("s1")
    wrong = story.start("s1", "sim-0", 1, 2)
    assert ("attempts", wrong) in story.broken()


def test_a_release_without_a_start_is_found() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    wrong = story.release("s1", "sim-1")
    assert story.broken() == [("attempts", wrong)]


def test_a_hole_in_the_log_and_an_unreadable_record_are_found() -> None:
    story = shop()
    forged = story.close("s1")
    story.records[-1] = e.Recorded(forged, 1, "session.s1.closed", None)
    story.records = [story.records[0], *story.records[2:]]
    assert story.broken() == [("log", 3), ("log", forged)]


def test_open_turns_are_known_while_the_log_is_read() -> None:
    story = shop()
    story.begin("s1", "sim-0")
    lives = story.proof().lives
    assert [(turn.session, turn.turn) for turn in lives.open] == [("s1", 1)]
    assert msgspec.structs.asdict(lives.open[0])["attempt"] == 1
