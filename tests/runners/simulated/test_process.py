"""The command as a process of its own: wrong use in one line, and a zombie that harms nobody."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_es.jetstream.client import Connection
from helix_runners.simulated.words import answer
from tests.conftest import NatsServer
from tests.runners.simulated.shop import PATIENCE_S, Shop

pytestmark = pytest.mark.anyio

COMMAND = [
    sys.executable,
    "-c",
    "from helix_es.cli.output import fail\nfrom helix_es.cli.simulated import simulated\nsimulated()",
]


@contextmanager
def process(server: NatsServer, folder: Path, *given: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run two simulated GPUs in a process of their own."""
    usual = ["--nats", server.url, "--model", "mistral", "--kind", "a100-80", "--gpu-prefix", "sim"]
    with (folder / "simulated.log").open("wb") as out:
        child = subprocess.Popen([*COMMAND, *usual, "--load-ms", "10", *given], stdout=out, stderr=out)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()


async def test_a_zombie_is_fenced_and_begins_another_life(
    nats_server: NatsServer, connection: Connection, tmp_path: Path
) -> None:
    shop = Shop(connection)
    with process(nats_server, tmp_path, "--count", "2", "--tokens-per-s", "20") as child:
        await shop.ready("sim-0", 1)
        await shop.open("s1", max_tokens=30)
        _, zombie = await shop.started("s1")
        child.send_signal(signal.SIGSTOP)
        await shop.lose("sim-0")
        await shop.release("s1", "lost")
        await shop.admit("s1")
        child.send_signal(signal.SIGCONT)
        await shop.fact(e.GpuJoined, lambda x: x.gpu == "sim-0" and x.incarnation != zombie.incarnation)
        await shop.ready("sim-0", 1)
        done = await shop.completed("s1")
        assert (done.attempt, done.output) == (2, answer("s1", 1, {"max_tokens": 30}))
        ends = [each.event for each in await shop.log.history("session.s1.turn.*.sim-0")]
        late = [each for each in ends if not isinstance(each, e.TurnStarted | e.TurnCompleted)]
        assert late == []
        child.terminate()
        assert await asyncio.wait_for(asyncio.to_thread(child.wait), PATIENCE_S) == 0
    left = [each.event for each in await shop.log.history("gpu.*.left")]
    assert sorted(each.gpu for each in left if isinstance(each, e.GpuLeft)) == ["sim-0", "sim-1"]


async def test_turns_go_on_after_the_broker_was_away(
    nats_server: NatsServer, connection: Connection, tmp_path: Path
) -> None:
    shop = Shop(connection)
    with process(nats_server, tmp_path, "--count", "1"):
        await shop.ready("sim-0", 2)
        await shop.open("s1", max_tokens=3)
        await shop.completed("s1")
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)
        async with asyncio.timeout(PATIENCE_S):
            await shop.proceed("s1", "are you back?")
            await shop.completed("s1", turn=2)
            await shop.open("s2", max_tokens=3)
            await shop.completed("s2")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--kind", "a1000"], "must be one of a100-40, a100-80"),
        (["--model", "nothing"], "no model 'nothing'"),
        (["--gpu-prefix", "Big GPU"], "--gpu-prefix 'Big GPU-0' is not usable"),
        (["--pool", "a.b"], "--pool 'a.b' is not usable"),
        (["--kind", "t4-16"], "does not fit t4-16"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(given: list[str], said: str) -> None:
    usual = ["--nats", "nats://127.0.0.1:1", "--kind", "a100-80", "--model", "mistral"]
    done = subprocess.run([*COMMAND, *usual, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_only_text_models_are_fine_tuned() -> None:
    given = ["--nats", "nats://127.0.0.1:1", "--kind", "a100-80", "--model", "sdxl", "--batch"]
    done = subprocess.run([*COMMAND, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--batch: none of the models is of type text" in done.stderr
