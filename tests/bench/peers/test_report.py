"""What the sides print becomes rows, and what a peer lacks becomes a line, not an end."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.bench.peers import sides
from tests.bench.peers.found import Dispatch, Recovery, Version, read
from tests.bench.peers.killing import begun, kill_one
from tests.bench.peers.load import Loop, described, drive, measure, percentile_ms
from tests.bench.peers.report import notes, table
from tests.bench.peers.sides import RAY, Ran

pytestmark = pytest.mark.anyio

DISPATCH = Dispatch(
    how="HTTP", concurrent=64, tasks=421, failed=579, p50_ms=1.25, p99_ms=None, per_s=64.9, error="E: full"
)
RECOVERY = Recovery(
    how="one of two",
    in_flight=11,
    failed=11,
    told_s=0.03,
    answered=10,
    first_s=1.1,
    last_s=1.2,
    resent=11,
    others_failed=0,
    error="ActorDiedError",
)


def shown(ran: list[Ran]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(table(ran))
    for note in notes(ran):
        console.print(note, markup=False)
    return out.getvalue()


def test_a_library_s_own_words_are_no_findings() -> None:
    line = msgspec.json.encode(RECOVERY).decode()
    assert read(f"(raylet) a worker died\n{line}\n") == [RECOVERY]


def test_a_row_says_what_failed_and_what_was_lost() -> None:
    text = shown([Ran(system=RAY, found=[Version(version="2"), DISPATCH, RECOVERY])])
    assert "64 at once" in text
    assert "579 failed: E: full" in text
    row = next(line for line in text.splitlines() if "kill -9" in line).split("kill -9")[1].split()
    assert row[3:6] == ["10", "11", "1"]
    assert "11 of 11 told after 0.03 s: ActorDiedError" in text


def test_a_peer_that_is_not_installed_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "PEERS", tmp_path / "none")
    reason = sides.absence(RAY)
    assert reason.startswith("not installed")
    assert reason in shown([Ran(system=RAY, wrong=reason, absent=True)])


def test_pip_s_own_words_say_why_a_peer_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "install.log").write_text("ERROR: No matching distribution found for ray==2.60.0\nnotice\n")
    monkeypatch.setattr(sides, "PEERS", tmp_path)
    monkeypatch.setitem(sides.IMPORTS, RAY, "no_such_module")
    reason = sides.absence(RAY)
    assert "No matching distribution found for ray" in reason
    assert "no_such_module" in reason


async def test_a_loop_counts_what_fails_and_goes_on() -> None:
    async def one(client: int) -> None:
        await asyncio.sleep(0)  # let the other have its turn
        if client:
            raise ValueError("two clients, one fails") from OSError("the cause")

    tally = await drive(one, Loop(concurrent=2, tasks=10))
    assert len(tally.took_s) + tally.failed == 10
    assert tally.error == "OSError: the cause"


async def test_a_measurement_is_one_line_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    async def one(_client: int) -> None:
        pass

    await measure("HTTP", one, (Loop(1, 5), Loop(4, 8)))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["concurrent"], each["tasks"]) for each in found] == [(1, 5), (4, 8)]


def test_percentiles_are_milliseconds() -> None:
    assert percentile_ms([0.001] * 50 + [0.1] * 50, 99) == pytest.approx(100)


def test_the_innermost_cause_is_described() -> None:
    assert described(ValueError()) == "ValueError"


async def test_tasks_that_never_begin_end_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bench.peers.killing.BEGUN_S", 0.05)

    async def do(_task: str) -> None:
        pass

    with pytest.raises(TimeoutError, match="0 of 20"):
        await kill_one("never", do, tmp_path / "marks")


def test_a_task_belongs_to_who_began_it_first(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.write_text("a 1\nb 2\na 3\n")
    assert begun(marks) == {"a": 1, "b": 2}
