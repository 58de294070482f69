"""`helix why`: the story of a session in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helix_es.cli.instants import clock
from helix_es.cli.why import why
from helix_es.core import events as e
from tests.cli.fake import helix
from tests.cli.recorded import TRAINS, busy_shop, stored
from tests.core.doings import step
from tests.core.shop import WORK, Shop


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return stored(busy_shop().log.records, tmp_path / "log.jsonl")


def asked(*words: str) -> Result:
    return CliRunner().invoke(why, list(words), catch_exceptions=False)


def story(shop: Shop, folder: Path, sid: str) -> str:
    found = asked("--log", str(stored(shop.log.records, folder / "log.jsonl")), sid)
    assert found.exit_code == 0, found.stderr
    return found.stdout


def test_a_turn_is_told_from_the_door_to_its_gpu(path: Path) -> None:
    found = asked("--log", str(path), "s-bob")
    assert found.exit_code == 0
    assert found.stdout == (
        """Session s-bob of bob: text with mistral, priority 2
came in 2026-11-24 06:00:00.200Z

Turn 1, said 06:00:00.200 (sequence 13): at the door
  waited 4.0 s from place 1; told 13.0 s, it was 9.0 s shorter
    the floor then: 1 slot, 0 free
      1 GPU full: box-0 (1/1)
      1 GPU unable to run it
    1 slot came free meanwhile (1 of silent sessions); 0 turns from ahead admitted
    for 4.0 s of it nothing at all was decided, about anybody
    admitted 06:00:04.200 (sequence 16), decided from sequence 15 at 06:00:04.200: 1 free
  ran on box-0 from 06:00:04.200 (sequence 17), 0 ms later; alone on 1 slot
    still runs
  is running at the end of the log, 07:00:04.200
"""
    )


def test_whoever_gave_a_slot_back_is_told_to_whom(path: Path) -> None:
    told = asked("--log", str(path), "s-ann").stdout
    assert "→ completed 2.1 s after it was said" in told
    assert (
        "06:00:04.200 gave its slot on box-0 back: silent too long while others waited, 1 waited "
        "(sequence 15, decided at 14)" in told
    )


def test_a_turn_that_still_waits_says_so(path: Path) -> None:
    told = asked("--log", str(path), "s-cyd").stdout
    assert "still waits from place 1; told" in told
    assert "is queued at the end of the log" in told


def test_who_was_ahead_who_passed_and_the_owners_limit_are_said(tmp_path: Path) -> None:
    shop = Shop(e.Policy(slots_per_owner=1))
    shop.join("box-0", 2, [WORK])
    step(shop)
    for sid, owner, priority in (
        ("s0", "ann", 0),
        ("s1", "ann", 0),
        ("s2", "ann", 0),
        ("s3", "bob", 0),
        ("s4", "cyd", 3),
    ):
        shop.open(sid, owner, priority)
        step(shop, 1000)
    told = story(shop, tmp_path, "s2")
    assert "ahead: s1#1 (ann: earlier)" in told
    assert "its owner held 1 slot and may hold 1, for 2.0 s of the wait" in told
    assert "passed by: s3#1 (bob, said 00:16:43.100: its owner had had less than its share)" in told
    for sid in ("s3", "s0"):
        shop.finish(shop.runners["box-0"], sid)
        shop.close(sid)
        step(shop)
    assert "s4#1 (cyd, said 00:16:44.100: higher priority 3)" in story(shop, tmp_path, "s2")


def changes_told(folder: Path, losses: int, *, joins: bool = False) -> tuple[str, list[str]]:
    """Return what is said of the slots that came free while s1 waited at its owner's limit, and of each change.

    box-1 is lost each second, `losses` times, and comes back at once; with `joins` box-2 comes in the end.
    """
    shop = Shop(e.Policy(slots_per_owner=1))
    shop.join("box-0", 1)
    shop.join("box-1", 2)
    step(shop)
    shop.open("s0")
    step(shop)
    shop.open("s1")
    step(shop, 850)
    for _ in range(losses):
        shop.lose("box-1")
        step(shop, 1000)
    if joins:
        shop.join("box-2", 3)
        step(shop)
    told = story(shop, folder, "s1").splitlines()
    (first,) = [n for n, line in enumerate(told) if "came free meanwhile" in line]
    lines = [line.strip() for line in told[first + 1 :]]
    return told[first].strip(), lines[
        : next(n for n, line in enumerate(lines) if line.startswith("is queued"))
    ]


def test_each_of_a_few_changes_has_a_line(tmp_path: Path) -> None:
    _, told = changes_told(tmp_path, 4, joins=True)
    assert [line.split(" ", 1)[1] for line in told] == [
        "box-1 was lost (silent): 2 slots fewer",
        "box-1 was ready: 2 slots more",
    ] * 4 + ["box-2 was ready: 3 slots more"]


@pytest.mark.parametrize(("losses", "more", "until"), [(5, 2, "00:16:44.050"), (80, 152, "00:17:59.050")])
def test_of_many_changes_the_first_and_the_last_have_a_line_and_the_rest_is_counted(
    tmp_path: Path, losses: int, more: int, until: str
) -> None:
    heading, told = changes_told(tmp_path, losses)
    assert heading == (
        f"{2 * losses} slots came free meanwhile ({2 * losses} of GPUs that were ready); 0 turns from ahead admitted"
    )
    assert [line.split(" ", 1)[1] for line in told if not line.startswith("…")] == [
        "box-1 was lost (silent): 2 slots fewer",
        "box-1 was ready: 2 slots more",
    ] * 4
    assert told[4] == f"… {more} more from 00:16:43.050 to {until}"
    assert told[-1].startswith(clock(1_001_050 + 1000 * losses))


def test_what_was_free_and_did_not_help_is_said(tmp_path: Path) -> None:
    shop = Shop(e.Policy(reserved=1))
    shop.join("box-0", 1, [WORK, TRAINS])
    shop.join("box-1", 1, [e.Workload("create", "image", "sdxl"), WORK])
    shop.open("p0", work=e.Workload("create", "image", "sdxl"))
    step(shop)
    shop.open("s0")
    step(shop)
    shop.join("box-2", 1, [WORK], load_ms=5000)
    step(shop)
    shop.open("s1")
    step(shop, 1000)
    told = story(shop, tmp_path, "s1")
    assert "1 GPU kept for batch work (1 slot free, of no use here): box-0 (0/1)" in told
    assert "1 GPU for sdxl: box-1 (1/1)" in told
    assert "1 GPU loading mistral: box-2 (0/1, for 0 ms)" in told


def test_a_turn_whose_gpu_was_lost_is_told_twice(tmp_path: Path) -> None:
    shop = Shop()
    shop.join("box-0", 1)
    step(shop)
    shop.open("s0")
    step(shop)
    shop.now_ms += 1500
    shop.lose("box-0")
    step(shop)
    step(shop, 500)
    told = story(shop, tmp_path, "s0")
    assert "1.6 s later: its GPU was lost" in told
    assert "again at 00:16:41.800, since its GPU was lost, from place 1" in told
    assert "attempt 2), decided from sequence" in told


def test_a_failure_at_the_door_is_told_with_its_reason(tmp_path: Path) -> None:
    shop = Shop()
    shop.open("s0", max_wait_ms=1000)
    step(shop, 1500)
    told = story(shop, tmp_path, "s0")
    assert "no GPU was there" in told
    assert "failed at the door at" in told
    assert (
        "→ failed 1.5 s after it was said: wait_exceeded: no slot came free within 1 s (max_wait_s)" in told
    )


def test_one_turn_alone_and_json(path: Path) -> None:
    found = json.loads(asked("--log", str(path), "s-ann", "--turn", "1", "--json").stdout)
    (told,) = found["turns"]
    (wait,) = told["waits"]
    assert (found["session"], told["at"], told["state"]) == ("s-ann", "2026-11-24T06:00:00.100Z", "completed")
    assert (wait["place"], wait["told_ms"], wait["end"]) == (1, 0, "admitted")
    assert wait["decision"]["decided_at"] == "2026-11-24T06:00:00.200Z"
    assert [each["why"] for each in wait["obstacles"]] == ["free", "unfit"]
    assert not [key for key in (*found, *told, *wait) if key in ("at_ms", "ended_ms", "created_ms")]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["nobody"], 1, "there is no session 'nobody' in "),
        (["s-"], 1, "did you mean s-ann or s-bob or s-cyd?"),
        (["s-ann", "--turn", "2"], 1, "session s-ann has 1 turn, no turn 2"),
        (["s-ann", "--turn", "0"], 2, ""),
        ([], 2, ""),
    ],
)
def test_what_is_not_in_the_log_is_an_error(path: Path, words: list[str], code: int, error: str) -> None:
    found = asked("--log", str(path), *words)
    assert (found.exit_code, found.stdout) == (code, "")
    assert error in found.stderr


def test_the_command_line_knows_it(path: Path) -> None:
    found = helix("why", "--log", str(path), "s-bob", "--turn", "1")
    assert (found.returncode, "waited 4.0 s from place 1" in found.stdout) == (0, True)


def test_what_others_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    shop = Shop()
    shop.join("box-0", 1)
    step(shop)
    shop.open("s0", "\x1b[2Jann")
    step(shop)
    assert "\x1b" not in story(shop, tmp_path, "s0")
