"""`helix runner any`, the process, with the shipped models: it draws, then it talks, then it is not needed any more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_es.jetstream.beats import Beats
from tests.conftest import NatsServer
from tests.e2e.shop import HELIX
from tests.runners.floor import CHAT, GPU, PICTURES, Floor

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

BEGIN_S = 90.0
MOST_SILENCE_MS = 4500  # importing in the event loop's thread takes longer, even on an idle machine


class Process:
    def __init__(self, url: str, said: Path) -> None:
        words = ["--serve", "image:scenes", "--serve", "text:smollm2", "--serve", "batch:smollm2"]
        command = [
            *HELIX,
            "runner",
            "any",
            *words,
            "--gpu",
            GPU,
            "--nats",
            url,
            "--device",
            "cpu",
            "--slots",
            "2",
        ]
        self.said = said
        self._out = said.open("wb")
        env = {**os.environ, "HELIX_POOL": "night"}
        self.child = subprocess.Popen(command, stdout=self._out, stderr=self._out, env=env)

    async def code(self, seconds: float = 20.0) -> int:
        return await asyncio.to_thread(self.child.wait, seconds)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self._out.close()


@pytest.fixture
def process(nats_server: NatsServer, floor: Floor, tmp_path: Path) -> Iterator[Process]:
    made = Process(nats_server.url, tmp_path / "said")
    yield made
    made.close()


async def begun(floor: Floor, process: Process) -> e.GpuJoined:
    """Wait until it has joined."""
    while not (found := await floor.facts(f"gpu.{GPU}.joined")):
        assert process.child.poll() is None, process.said.read_text()
        await asyncio.sleep(0.05)
    assert isinstance(found[0].event, e.GpuJoined)
    return found[0].event


async def longest_silence_ms(floor: Floor) -> int:
    """Return the longest time between two heartbeats."""
    source, at = Beats(floor.connection), []
    end = await source.last_seq()
    async for batch in source.follow(0):
        at += [each.at_ms for each in batch.records]
        if batch.records and batch.records[-1].seq >= end:
            break
    return max(after - before for before, after in pairwise(at))


async def test_it_is_given_around_and_leaves_in_order(floor: Floor, process: Process) -> None:
    floor.patience_s = BEGIN_S  # two libraries are imported, which takes seconds on a busy machine
    async with asyncio.timeout(BEGIN_S):
        joined = await begun(floor, process)
    life = joined.incarnation
    assert joined.pool == "night"
    assert [each.mode for each in joined.workloads] == ["create", "create", "finetune"]
    assert joined.slots == {"scenes": 2, "smollm2": 2}
    await floor.put(PICTURES, 1, incarnation=life)
    await floor.open("p1", PICTURES, steps=2)
    picture = (await floor.answered("p1")).event
    assert isinstance(picture, e.TurnCompleted)
    assert len(picture.files) == 1
    await floor.put(PICTURES, 0, incarnation=life, next=CHAT)
    await floor.release("p1", incarnation=life)
    ready = (await floor.put(CHAT, 2, incarnation=life)).event
    assert isinstance(ready, e.GpuReady)
    assert ready.load_ms > 0
    await floor.open("s1", max_tokens=8)
    said = (await floor.answered("s1")).event
    assert isinstance(said, e.TurnCompleted)
    assert said.output
    await floor.release("s1", incarnation=life)
    await floor.assign(CHAT, 0, incarnation=life, leaving=True)
    assert await process.code() == 0, process.said.read_text()
    assert len(await floor.facts(f"gpu.{GPU}.left")) == 1
    assert await longest_silence_ms(floor) < MOST_SILENCE_MS, "to load is no reason to count as lost"


async def test_it_ends_on_a_signal(floor: Floor, process: Process) -> None:
    async with asyncio.timeout(BEGIN_S):
        await begun(floor, process)
    process.child.send_signal(signal.SIGTERM)
    assert await process.code() == 0, process.said.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["any"], "Missing option '--serve'"),
        (["any", "--serve", "text:gpt"], "text needs one of the models"),
        (["any", "--serve", "video:sdxl"], "must be text:<model>, image:<model> or batch:<model>"),
        (["any", "--serve", "batch:scenes"], "batch needs one of the models"),
        (["any", "--serve", "text:smollm2", "--pool", "a.b"], "--pool 'a.b' is not usable"),
        (["text", "--pool", ""], "--pool '' is not usable"),
        (["image", "--model", "smollm2"], "makes text, not image"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "helix_es.cli.__main__", "runner", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
