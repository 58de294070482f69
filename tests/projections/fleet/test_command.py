"""Shell commands that make a pool as large as they are told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from helix_projections.fleet.command import Command
from helix_projections.fleet.provider import ProviderError

pytestmark = pytest.mark.anyio

ENV = {"HELIX_POOL": "burst", "HELIX_NATS_URL": "nats://here"}


def made(folder: Path, command: str, limit_s: float = 20) -> Command:
    return Command(command, folder, ENV, limit_s=limit_s)


async def test_it_finds_the_pool_and_its_sizes_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    provider = made(tmp_path, f"echo $HELIX_POOL $HELIX_SIZE $HELIX_PREVIOUS $HELIX_NATS_URL >> {out}")
    assert await provider.make(3, 1, {}) is None
    await provider.make(0, 3, {})
    assert out.read_text() == "burst 3 1 nats://here\nburst 0 3 nats://here\n"


async def test_it_runs_once_for_a_size_however_often_that_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    provider = made(tmp_path, f"echo $HELIX_SIZE >> {out}")
    for size in (2, 2, 2, 1, 1, 2):
        await provider.make(size, 0, {"a": "serving"})
    assert out.read_text().split() == ["2", "1", "2"]


async def test_a_failure_says_the_code_and_the_last_lines_and_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    provider = made(tmp_path, f"seq 1 30; echo quota exceeded >&2; test -e {flag} || exit 7")
    with pytest.raises(ProviderError, match=r"exit code 7: 22 \| .* \| 30 \| quota exceeded$") as caught:
        await provider.make(1, 0, {})
    assert " | 21" not in str(caught.value)
    flag.touch()
    with capture_logs() as said:
        await provider.make(1, 0, {})
    (line,) = said
    assert line["event"] == "command_succeeded"
    assert line["said"].endswith("30 | quota exceeded")


async def test_after_a_failure_the_size_before_is_made_again_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    provider = made(tmp_path, f"echo $HELIX_SIZE >> {out}; test $HELIX_SIZE != 2")
    await provider.make(1, 0, {})
    with pytest.raises(ProviderError):
        await provider.make(2, 1, {})
    await provider.make(1, 1, {})
    assert out.read_text().split() == ["1", "2", "1"]


async def test_all_that_it_started_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    provider = made(tmp_path, f"sleep 300 & echo $! $$ > {pids}; echo waiting; wait", limit_s=0.5)
    with pytest.raises(ProviderError, match=r"longer than 0\.5 s: waiting"):
        await provider.make(1, 0, {})
    await gone(pids)


async def test_it_is_ended_with_the_fleet(tmp_path: Path) -> None:
    fifo, pids = tmp_path / "fifo", tmp_path / "pids"
    os.mkfifo(fifo)
    provider = made(tmp_path, f"sleep 300 & echo $! $$ > {pids}; echo > {fifo}; wait")
    making = asyncio.create_task(provider.make(1, 0, {}))
    await asyncio.wait_for(asyncio.to_thread(fifo.read_text), 20)  # it runs
    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    await gone(pids)


async def gone(pids: Path) -> None:
    """Wait until the processes written down in `pids` are over; init may reap them a little later."""
    started = [int(pid) for pid in pids.read_text().split()]  # noqa: ASYNC240
    async with asyncio.timeout(10):
        while any(alive(pid) for pid in started):  # noqa: ASYNC110  polls with a deadline
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_one_that_leaves_something_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    provider = made(tmp_path, "sleep 300 & echo $!")
    await provider.make(1, 0, {})
    left = int((tmp_path / "command.log").read_text())
    os.kill(left, 9)
