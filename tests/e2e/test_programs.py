"""Any program as a runner, as its users start it; and kill -9 of the runner in the middle of a task."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.e2e.shop import HELIX, Client, Shop, ended, helix

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def bare(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """A shop without a runner of its own."""
    running = Shop(tmp_path_factory.mktemp("bare"), runners="")
    try:
        await asyncio.to_thread(running.start)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


def gone(pid: int) -> bool:
    """Wait until a process has ended; False if it does not."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.wait(10) is None
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False


@contextmanager
def program(shop: Shop, gpu: str, *words: str, model: str = "mistral") -> Iterator[subprocess.Popen[bytes]]:
    """A command runner beside the shop."""
    options = ["--nats", shop.nats_url, "--gpu", gpu, "--model", model, "--drain-s", "1"]
    process = subprocess.Popen([*HELIX, "runner", "command", *options, *words])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


async def test_a_shell_one_liner_is_a_runner(bare: Shop) -> None:
    with program(bare, "prog-0", "--", "tr", "a-z", "A-Z"):
        done = await helix(bare, "chat", "--model", "mistral", "say it louder")
        assert done.stdout == "[INST]SAY IT LOUDER[/INST]\n"


async def test_a_killed_command_runner_takes_its_program_along_and_loses_no_turn(
    bare: Shop, tmp_path: Path
) -> None:
    script = f"echo $$ >> {tmp_path}/pids; cat; [ -e {tmp_path}/go ] || exec sleep 600"
    async with Client(bare.url) as client:
        with program(bare, "prog-1", "--template", "{prompt}", "--", "sh", "-c", script) as first:
            sid = (await client.open("hello", model="mistral"))["session_id"]
            async for event in client.events(sid, 1):
                if event.name == "delta":
                    break
            (tmp_path / "go").touch()
            first.send_signal(signal.SIGKILL)
            first.wait()
            with program(bare, "prog-2", "--template", "{prompt}", "--", "sh", "-c", script):
                turn = await client.answer(sid)
        assert (turn["state"], turn["attempt"], turn["output"]) == ("completed", 2, "hello")
    pid = int((tmp_path / "pids").read_text().split()[0])
    assert await asyncio.to_thread(gone, pid), "the program outlived its runner"


async def test_a_program_that_hangs_or_floods_is_stopped_and_disturbs_nobody(bare: Shop) -> None:
    script = 'read -r what; case "$what" in hang) trap "" TERM; sleep 600;; flood) yes;; *) echo "fine: $what";; esac'
    options = ("--template", "{prompt}\n", "--time-limit-s", "1", "--grace-s", "0.2", "--parallel", "3")
    limit = ("--most-output-bytes", "20000")
    async with Client(bare.url) as client:
        with program(bare, "prog-3", *options, *limit, "--", "sh", "-c", script):
            opened = [await client.open(what, model="mistral") for what in ("hang", "flood", "hello")]
            turns = [await ended(client, each["session_id"]) for each in opened]
    assert [turn["state"] for turn in turns] == ["failed", "failed", "completed"]
    assert [turn["error"] and turn["error"]["code"] for turn in turns] == [
        "time_limit",
        "output_too_large",
        None,
    ]
    assert turns[2]["output"] == "fine: hello\n"


async def test_a_program_that_draws_is_an_image_runner(bare: Shop, tmp_path: Path) -> None:
    draw = (
        "import os, sys; from PIL import Image; sys.stdin.read(); "
        "Image.new('RGB', (8, 8), 'red').save(os.environ['HELIX_OUTPUT_DIR'] + '/red.png')"
    )
    options = ("--type", "image", "--template", "{prompt}")
    with program(bare, "prog-4", *options, "--", sys.executable, "-c", draw, model="sdxl"):
        await helix(bare, "image", "anything", "--model", "sdxl", "-o", str(tmp_path / "red.png"))
    assert Image.open(tmp_path / "red.png").convert("RGB").getpixel((0, 0)) == (255, 0, 0)
