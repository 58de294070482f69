"""However a task ends, nothing of its program is left: floods, limits, cancels, children, a runner that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from helix_es.core.errors import NotOurs
from tests.runners.command.kit import Heard, Start, alive, exists, job, leftovers, pids_in, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


NOTE = 'echo $$ > "$1/$$"'  # a shell writes its number into a folder


@pytest.mark.parametrize("flood", ["yes", "tr '\\0' x </dev/zero", "cat /dev/zero", "cat /dev/urandom"])
async def test_a_flood_is_stopped_and_what_fits_is_kept(start: Start, tmp_path: Path, flood: str) -> None:
    work = await start("sh", "-c", f"{NOTE}; {flood}", "sh", str(tmp_path), most_output_bytes=5000)
    outcome = await work.perform(job(), Heard())
    assert outcome.error is not None
    assert outcome.error.code == "output_too_large"
    assert 4990 <= len(json.dumps(outcome.output, ensure_ascii=False).encode()) - 2 <= 5010
    assert not any(map(alive, pids_in(tmp_path)))


async def test_a_program_that_ignores_sigterm_is_killed_at_its_time_limit(
    start: Start, tmp_path: Path
) -> None:
    program = f"trap '' TERM; {NOTE}; printf begun; while :; do sleep 60; done"
    work = await start("sh", "-c", program, "sh", str(tmp_path), time_limit_s=0.3)
    begun = time.monotonic()
    outcome = await work.perform(job(), Heard())
    assert time.monotonic() - begun < 10
    assert outcome.output == "begun"
    assert outcome.error is not None
    assert outcome.error.code == "time_limit"
    assert "0.3 s" in outcome.error.message
    assert not any(map(alive, pids_in(tmp_path)))


# `timeout` puts itself into a process group of its own
FAMILY = f"{NOTE}; printf begun; timeout 60 sh -c '{NOTE}; sleep 60' sh \"$1\" & sh -c '{NOTE}; sleep 60' sh \"$1\""


async def test_cancel_ends_the_program_with_all_of_its_children(start: Start, tmp_path: Path) -> None:
    work = await start("sh", "-c", FAMILY, "sh", str(tmp_path))
    heard = Heard()
    turn = asyncio.create_task(work.perform(job(), heard))
    await until(lambda: len(pids_in(tmp_path)) == 3, "three processes")
    await work.cancel("another")
    assert work.detail()["running"] == 1
    await work.cancel("s1")
    outcome = await asyncio.wait_for(turn, 20)
    assert (outcome.cancelled, outcome.output, outcome.error) == (True, "begun", None)
    assert not any(map(alive, pids_in(tmp_path)))
    await work.cancel("s1")
    assert work.detail()["pids"] == []


async def test_a_program_that_has_much_to_say_on_sigterm_can_end_by_itself(
    start: Start, tmp_path: Path
) -> None:
    tidy = tmp_path / "tidy"
    program = f"trap 'seq 100000; touch {tidy}; exit' TERM; printf begun; while :; do sleep 0.01; done"
    work = await start("sh", "-c", program, grace_s=10)
    heard = Heard()
    turn = asyncio.create_task(work.perform(job(), heard))
    await asyncio.wait_for(heard.spoken.wait(), 20)
    await work.cancel("s1")
    assert (await asyncio.wait_for(turn, 20)).output == "begun"
    assert exists(str(tidy))


async def test_a_task_that_is_cancelled_leaves_no_process(start: Start, tmp_path: Path) -> None:
    work = await start("sh", "-c", FAMILY, "sh", str(tmp_path))
    turn = asyncio.create_task(work.perform(job(), Heard()))
    await until(lambda: len(pids_in(tmp_path)) == 3, "three processes")
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert not any(map(alive, pids_in(tmp_path)))


async def test_a_task_that_is_cancelled_twice_leaves_no_process_either(start: Start, tmp_path: Path) -> None:
    program = f"trap '' TERM; {NOTE}; while :; do sleep 60; done"
    work = await start("sh", "-c", program, "sh", str(tmp_path))
    turn = asyncio.create_task(work.perform(job(), Heard()))
    await until(lambda: len(pids_in(tmp_path)) == 1, "a process")
    for _ in range(3):
        turn.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until(lambda: not any(map(alive, pids_in(tmp_path))), "end")


async def test_a_turn_that_is_anothers_now_stops_its_program(start: Start, tmp_path: Path) -> None:
    work = await start("sh", "-c", FAMILY, "sh", str(tmp_path))

    async def not_ours(text: str) -> None:
        await until(lambda: len(pids_in(tmp_path)) == 3, "three processes")
        raise NotOurs("the turn is another's")

    with pytest.raises(NotOurs):
        await work.perform(job(), Heard(not_ours))
    assert not any(map(alive, pids_in(tmp_path)))


async def test_a_child_that_holds_stdout_open_ends_with_its_parent(start: Start, tmp_path: Path) -> None:
    work = await start("sh", "-c", f"sh -c '{NOTE}; sleep 60' sh \"$1\" & echo hi", "sh", str(tmp_path))
    begun = time.monotonic()
    outcome = await work.perform(job(), Heard())
    assert (outcome.output, outcome.error) == ("hi\n", None)
    assert time.monotonic() - begun < 10
    assert not any(map(alive, pids_in(tmp_path)))


async def test_a_daemon_that_holds_stdout_open_does_not_hang_the_turn(start: Start, tmp_path: Path) -> None:
    work = await start(
        "sh", "-c", f"setsid sh -c '{NOTE}; sleep 60' sh \"$1\" & echo hi; sleep 0.2", "sh", str(tmp_path)
    )
    begun = time.monotonic()
    outcome = await work.perform(job(), Heard())
    assert (outcome.output, outcome.error) == ("hi\n", None)
    assert time.monotonic() - begun < 10
    for pid in pids_in(tmp_path):  # it has left the session on purpose: the README says so
        os.killpg(pid, signal.SIGKILL)


async def test_words_that_come_just_after_the_end_are_heard(start: Start) -> None:
    work = await start("sh", "-c", "(sleep 0.2; echo late) & echo early")
    assert (await work.perform(job(), Heard())).output == "early\nlate\n"


async def test_close_ends_what_runs_and_removes_its_folders(start: Start, tmp_path: Path) -> None:
    work = await start("sh", "-c", FAMILY, "sh", str(tmp_path))
    turn = asyncio.create_task(work.perform(job(), Heard()))
    await until(lambda: len(pids_in(tmp_path)) == 3, "three processes")
    assert leftovers()
    turn.cancel()
    await work.close()
    assert not any(map(alive, pids_in(tmp_path)))
    assert leftovers() == []
    await asyncio.wait([turn])


RUNNER = """
import asyncio, sys
from helix_es.core.catalogue import BUILTIN
from helix_es.core.events import Workload
from helix_runners.command.settings import CommandSettings
from helix_runners.command.work import CommandWork
from tests.runners.command.kit import Heard, Shelf, job

async def main():
    work = CommandWork(Shelf(), CommandSettings(command=sys.argv[1:], grace_s=0.3))
    await work.load(Workload("create", "text", "smollm2"), BUILTIN["smollm2"])
    await work.perform(job(), Heard())

asyncio.run(main())
"""


async def test_a_runner_that_is_killed_takes_its_programs_and_folders_along(tmp_path: Path) -> None:
    pids, temporary = tmp_path / "pids", tmp_path / "tmp"
    pids.mkdir()
    temporary.mkdir()
    runner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        RUNNER,
        *("sh", "-c", f"trap '' TERM; {FAMILY}", "sh", str(pids)),
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=Path(__file__).parents[3],
    )
    await until(lambda: len(pids_in(pids)) == 3, "three processes", 30)
    assert list(temporary.iterdir())
    runner.kill()
    await runner.wait()
    await until(lambda: not any(map(alive, pids_in(pids))), "end")
    await until(lambda: not list(temporary.iterdir()), "clean folder")
