"""`helix replay`: the shop as it was, and the film."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.archive import JsonLines, Live
from helix_es.cli.archives import Source
from helix_es.cli.drawn import drawing
from helix_es.cli.facts import said
from helix_es.cli.filmed import Wanted, play
from helix_es.cli.instants import Ago, At, Seq, lasted, parse
from helix_es.cli.replay import replay
from helix_es.core import events as e
from helix_es.core.codec import decode
from helix_es.core.errors import Unavailable
from helix_es.core.events import Recorded
from helix_es.core.occupancy import Occupancy
from tests.cli.fake import helix, terminal
from tests.cli.recorded import START_MS, busy_shop, stored
from tests.core.shop import Shop

SAMPLES = Path(__file__).parent.parent / "data" / "events"


@pytest.fixture
def shop() -> Shop:
    return busy_shop()


@pytest.fixture
def path(shop: Shop, tmp_path: Path) -> Path:
    return stored(shop.log.records, tmp_path / "log.jsonl")


def asked(*words: str) -> Result:
    return CliRunner().invoke(replay, list(words), catch_exceptions=False)


def shown(path: Path, at: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asked("--log", str(path), "--at", at, "--json").stdout)
    return found


# -- instants


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("17", Seq(17)),
        ("0", Seq(0)),
        ("-10m", Ago(600_000)),
        ("-1h30m", Ago(5_400_000)),
        ("-1.5s", Ago(1500)),
        ("-250ms", Ago(250)),
        ("-2d", Ago(172_800_000)),
        ("2026-11-24T06:00:00Z", At(START_MS)),
        ("2026-11-24 06:00", At(START_MS)),
        ("2026-11-24T07:00:00.250+01:00", At(START_MS + 250)),
        ("yesterday", None),
        ("-10", None),
        ("-5x", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_instants_are_given_as_people_do(text: str, when: object) -> None:
    assert parse(text) == when


def test_durations_are_said_in_a_unit_that_fits() -> None:
    assert [lasted(ms) for ms in (7, 1234, 59_940, 60_000, 61_000, 3_600_000, 5_400_000)] == [
        "7 ms",
        "1.2 s",
        "59.9 s",
        "1 min",
        "1 min 1 s",
        "1 h",
        "1 h 30 min",
    ]


# -- one instant


def test_the_shop_is_shown_as_it_was(path: Path, shop: Shop) -> None:
    queued = next(r for r in shop.log.records if r.subject.startswith("session.s-bob.turn.queued"))
    found = asked("--log", str(path), "--at", str(queued.seq))
    assert found.exit_code == 0
    for part in (
        "Helix  2026-11-24 06:00:00 UTC   2 of 2 GPUs ready   1/2 slots held   1 waiting",
        f"sequence {queued.seq} stored at 2026-11-24T06:00:00.200Z",
        "box-0  a100-80  ready  chat   mistral  1/1",
        "box-1  a100-80  ready  batch  mistral  0/1",
        "s-bob    bob    1     2",
        "box-0  s-ann    ann    create  mistral  running  1     1",
        "coefficient a100-80/mistral  1",
    ):
        assert part in found.stdout, found.stdout
    assert "\x1b" not in found.stdout


def test_json_is_complete(path: Path, shop: Shop) -> None:
    queued = next(r for r in shop.log.records if r.subject.startswith("session.s-bob.turn.queued"))
    found = shown(path, str(queued.seq))
    assert list(found) == [
        *("log", "seq", "at", "recorded_at", "gpus", "queue", "bindings", "pools", "owners", "policy"),
        *("policy_seq", "set_aside"),
    ]
    assert (found["seq"], found["at"]) == (queued.seq, "2026-11-24T06:00:00.200Z")
    assert [(gpu["gpu"], gpu["sessions"], gpu["slots_used"]) for gpu in found["gpus"]] == [
        ("box-0", ["s-ann"], 1),
        ("box-1", [], 0),
    ]
    (line,) = [each for each in found["queue"] if each["waiting"]]
    (waits,) = line["sessions"]
    assert (waits["session_id"], waits["owner"], waits["priority"], waits["position"]) == (
        "s-bob",
        "bob",
        2,
        1,
    )
    assert (waits["told_s"], waits["wait_s"], waits["queued_at"]) == (13.0, 13.0, "2026-11-24T06:00:00.200Z")
    assert [(each["session_id"], each["gpu"], each["state"]) for each in found["bindings"]] == [
        ("s-ann", "box-0", "running")
    ]
    assert found["owners"] == [
        {"owner": "ann", "held": 1, "waiting": 0},
        {"owner": "bob", "held": 0, "waiting": 1},
    ]
    assert found["policy"]["idle_after_ms"] == 1000


@pytest.mark.parametrize("seq", [1, 5, 9, 14])
def test_a_time_a_sequence_and_how_long_ago_lead_to_the_same_shop(path: Path, shop: Shop, seq: int) -> None:
    records = shop.log.records
    same = max(each.seq for each in records if each.at_ms == records[seq - 1].at_ms)
    by_seq = shown(path, str(same))
    assert shown(path, by_seq["at"]) == by_seq
    assert shown(path, f"-{records[-1].at_ms - records[seq - 1].at_ms}ms") == by_seq


def test_between_two_records_the_clock_goes_on(path: Path) -> None:
    found = shown(path, "2026-11-24T06:30:00Z")
    assert (found["at"], found["recorded_at"]) == ("2026-11-24T06:30:00.000Z", "2026-11-24T06:00:04.200Z")


def test_what_was_set_aside_is_counted(path: Path) -> None:
    assert shown(path, "-0s")["set_aside"] == 1
    assert "1 records set aside" in asked("--log", str(path), "--at", "-0s").stdout


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("0", "there is no sequence 0: the log begins at 1"),
        ("9999", "there is no sequence 9999 yet: the log ends at"),
        ("2026-11-24T05:59:59Z", "is before the beginning: the log begins at 2026-11-24 06:00:00.000Z"),
        ("-5h", "is before the beginning: the log begins at 2026-11-24 06:00:00.000Z"),
        ("2026-11-25", "is after the end: the log ends at 2026-11-24 07:00:04.200Z"),
    ],
)
def test_an_instant_outside_the_log_is_an_error_that_says_where_the_log_is(
    path: Path, at: str, error: str
) -> None:
    found = asked("--log", str(path), "--at", at)
    assert found.exit_code == 1
    assert error in found.stderr
    assert found.stdout == ""


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    found = asked("--log", str(stored([], tmp_path / "log.jsonl")), "--at", "2026-11-24")
    assert (found.exit_code, "the log is empty" in found.stderr) == (1, True)


def test_a_file_that_is_no_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("no log\n")
    found = asked("--log", str(tmp_path / "x.jsonl"), "--at", "1")
    assert (found.exit_code, "x.jsonl, line 1" in found.stderr) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--at 1 --follow",
        "--at 1 --verify",
        "--follow --verify",
        "--at yesterday",
        "--at 1 --speed 3",
        "--at 1 --from 1",
        "--verify --to 3",
        "--at 1 --other-rules",
        "--follow --speed 0",
        "--at 1 --and-live",
        "--at 1 --log /nowhere",
    ],
)
def test_wrong_use_ends_with_2(words: str, path: Path) -> None:
    assert asked(*words.split()).exit_code == 2


# -- the film


class FakeClock:
    """A wall on which nobody waits."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.passed_s = 0.0
        self._now_ms = now_ms

    def s(self) -> float:
        return self.passed_s

    def now_ms(self) -> int:
        return self._now_ms + round(self.passed_s * 1000)

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds


def played(path: Path, **wanted: Any) -> FakeClock:
    clock = FakeClock()
    asyncio.run(play(Source(JsonLines(path), live=False), Wanted(**wanted), clock))
    return clock


def test_the_film_tells_every_fact_once_and_in_order(
    path: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    played(path)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "without a fact" not in line]
    assert [int(line.split()[1]) for line in told] == [record.seq for record in shop.log.records[1:]]
    bobs = re.compile(r"06:00:00\.200 +\d+  1/2 held  1 waiting  +s-bob#1 of bob waits for mistral$")
    assert any(bobs.match(line) for line in told), told
    assert not any("\x1b" in line for line in lines)


def test_the_film_takes_as_long_as_it_was_by_the_speed(path: Path) -> None:
    clock = played(path, end=At(START_MS + 4200), speed=2.0)
    assert clock.passed_s == pytest.approx(2.1, abs=0.06)


def test_an_idle_hour_is_cut_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = played(path, speed=1.0)
    assert clock.passed_s < 4.2 + 2.0 + 0.2
    assert "… 59 min 59 s without a fact are left out" in capsys.readouterr().out


def test_the_film_begins_and_ends_where_it_is_told_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played(path, start=Seq(5), end=Seq(9), speed=10.0)
    assert [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()] == [6, 7, 8, 9]
    played(path, start=Ago(3_602_000), end=Ago(3_000_000), as_json=True)
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert frames[0]["at"] == "2026-11-24T06:00:02.200Z"
    assert frames[-1]["at"] == "2026-11-24T06:10:04.200Z"
    assert sorted(each["at"] for each in frames) == [each["at"] for each in frames]
    assert 500_000 < sum(each["cut_ms"] for each in frames) <= 602_000


@pytest.mark.parametrize("speed", [1.0, 60.0, 1_000_000.0])
def test_the_last_frame_is_not_beyond_the_recording(
    speed: float, path: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    played(path, speed=speed, as_json=True)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["at"] == shown(path, str(len(shop.log.records)))["at"]


def test_the_film_as_json_has_a_line_for_each_frame(
    path: Path, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    played(path, as_json=True)
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [fact["seq"] for frame in frames for fact in frame["facts"]] == list(
        range(2, len(shop.log.records) + 1)
    )
    assert frames[0] | {"facts": [], "gpus": 0} == frames[0]
    assert (frames[-1]["seq"], frames[-1]["gpus"], frames[-1]["ready"]) == (len(shop.log.records), 2, 2)
    assert sum(frame["cut_ms"] for frame in frames) > 3_400_000


def test_a_live_film_goes_on_with_what_comes_and_no_faster_than_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shop = Shop()
    shop.now_ms = START_MS
    shop.join("box-0", 1)
    clock = FakeClock(START_MS)

    async def sleep(seconds: float) -> None:
        clock.passed_s += seconds
        shop.now_ms = clock.now_ms()
        if clock.passed_s > 20:
            raise asyncio.CancelledError
        if len(shop.runners) <= int(clock.passed_s / 4):
            shop.join(f"box-{len(shop.runners)}", 1)

    clock.sleep = sleep  # type: ignore[method-assign]
    asyncio.run(play(Source(Live(shop.log), live=True), Wanted(as_json=True), clock))
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [fact["said"].split()[0] for frame in frames for fact in frame["facts"]]
    assert told == ["box-1", "box-2", "box-3", "box-4"]
    assert max(frame["at"] for frame in frames) <= "2026-11-24T06:00:20.500Z"


def test_a_live_film_tells_that_the_log_does_not_answer_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shop = Shop()
    shop.now_ms = START_MS
    shop.join("box-0", 1)
    clock = FakeClock(START_MS)

    class Flaky:
        name = "the log"

        async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
            if 2 < clock.passed_s < 4:
                raise Unavailable("nobody answers")
            if clock.passed_s > 6:
                raise asyncio.CancelledError
            if clock.passed_s > 5 and len(shop.runners) == 1:
                shop.now_ms = clock.now_ms()
                shop.join("box-1", 1)
            async for records in Live(shop.log).read(after_seq):
                yield records

    asyncio.run(play(Source(Flaky(), live=True), Wanted(), clock))
    told = capsys.readouterr()
    assert "helix: nobody answers; trying again" in told.err
    assert "box-1 joins" in told.out


def test_a_clock_behind_the_servers_never_plays_backwards(capsys: pytest.CaptureFixture[str]) -> None:
    shop = busy_shop()
    clock = FakeClock(START_MS - 60_000)

    async def sleep(seconds: float) -> None:
        clock.passed_s += seconds
        if clock.passed_s > 5:
            raise asyncio.CancelledError

    clock.sleep = sleep  # type: ignore[method-assign]
    asyncio.run(play(Source(Live(shop.log), live=True), Wanted(start=Seq(9), as_json=True), clock))
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["seq"] for each in frames if each["seq"] < 9] == []


@pytest.mark.parametrize("size", [(100, 30), (80, 24), (60, 20)])
def test_a_frame_is_no_higher_than_the_terminal(size: tuple[int, int]) -> None:
    from rich.console import Console

    shop = Shop()
    for n in range(60):
        shop.join(f"box-{n}", 20)
    shop.schedule()
    for n in range(80):
        shop.open(f"s{n}", work=e.Workload("create", "text", f"model-{n % 9}"))
    console = Console(width=size[0], height=size[1], record=True, file=io.StringIO())
    state = shop.catch_up(Occupancy())
    console.print(drawing(state, "the log", [f"fact {n}" for n in range(40)], console.size))
    lines = console.export_text().splitlines()
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    for part in ("0 of 60 GPUs ready", "60 GPUs", "0/1200", "and 3 more queues", "fact 39"):
        assert any(part in line for line in lines), lines


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_fact_has_words(sample: Path) -> None:
    stored_as = json.loads(sample.read_bytes())
    event = decode(stored_as["subject"], json.dumps(stored_as["payload"]).encode())
    if not isinstance(event, e.GpuHeartbeat | e.SchedulerBeat):  # these are not in the log
        assert said(e.Recorded(1, 0, stored_as["subject"], event)) != stored_as["subject"]


# -- the process


def test_a_terminal_sees_the_film_and_keeps_its_last_frame(path: Path) -> None:
    with terminal("replay", "--log", str(path), "--follow", "--speed", "30") as shell:
        shell.until("Ctrl-C ends")
        left = shell.until("\x1b[?1049l")
        shell.until("s-cyd comes in", left)
        assert shell.ended() == 0


def test_ctrl_c_ends_the_film_with_0(path: Path) -> None:
    with terminal("replay", "--log", str(path), "--follow", "--speed", "0.001") as shell:
        shell.until("Ctrl-C ends")
        shell.write("\x03")
        shell.until("\x1b[?1049l")
        assert shell.ended() == 0


def test_the_command_line_knows_it(path: Path) -> None:
    found = helix("replay", "--log", str(path), "--at", "yesterday")
    assert found.returncode == 2
    assert "'yesterday' is no instant: give a sequence (1234)" in found.stderr
