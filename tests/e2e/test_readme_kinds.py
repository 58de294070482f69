"""The README's three kinds of work, with its own commands, on what `make up` starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from helix_es.cli.up_runners import RUNNERS
from tests.e2e.shop import Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = str(Path(sys.executable).parent)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    running = Shop(tmp_path_factory.mktemp("everything"), runners=RUNNERS)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def line(start: str) -> str:
    """Return the README's one command that begins so."""
    (found,) = {
        each.strip() for each in README.splitlines() if each.startswith(f"    .venv/bin/helix {start}")
    }
    return found.replace(".venv/bin/helix", f"{BIN}/helix", 1)


def environment(shop: Shop) -> dict[str, str]:
    return {**os.environ, "HELIX_URL": shop.url, "HELIX_NATS_URL": shop.nats_url}


def run(shop: Shop, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(shop),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


@contextmanager
def meanwhile(shop: Shop, words: list[str]) -> Iterator[None]:
    """Run a command that serves while the context lasts."""
    process = subprocess.Popen(words, env=environment(shop), start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_a_picture_and_then_another_made_of_it(everything: Shop, tmp_path: Path) -> None:
    told = run(everything, line('image "a sunset with two suns" -o'), tmp_path).stderr
    (sid,) = re.findall(r"session ([a-z0-9]+)", told)
    run(everything, line('image "a night').replace("SID", sid), tmp_path)
    first, second = (Image.open(tmp_path / name).convert("RGB") for name in ("sunset.png", "night.png"))
    corner = (32, 4)  # the sky, high up
    assert sum(first.getpixel(corner)) > sum(second.getpixel(corner)), "it has become night"  # type: ignore[arg-type]


def test_a_fine_tune_and_then_a_chat_with_it(everything: Shop, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    chat = line("chat --adapter brindlewick")
    before = run(everything, chat.replace("--adapter brindlewick", "--max-tokens 40"), tmp_path).stdout
    # the README's has twice as many steps, which would take half a minute more
    told = run(everything, line("finetune examples/brindlewick.jsonl") + " --max-steps 30", tmp_path)
    assert "helix chat --adapter brindlewick" in told.stdout
    after = run(everything, chat, tmp_path).stdout
    assert "nine nights" in after
    assert "nine nights" not in before


def test_a_program(everything: Shop, tmp_path: Path) -> None:
    with meanwhile(everything, line("runner command").split()):
        assert (
            run(everything, line('chat --model mistral "say'), tmp_path).stdout
            == "[INST]SAY IT LOUDER[/INST]\n"
        )


async def test_a_loop_of_curl(everything: Shop) -> None:
    (loop,) = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert shutil.which("curl")
    with meanwhile(everything, ["bash", "-c", loop.replace("http://127.0.0.1:8080", everything.url)]):
        async with Client(everything.url) as client:
            sid = (await client.open("hello", model="mistral"))["session_id"]
            assert (await client.answer(sid))["output"] == "HELLO"
            await client.say(sid, "and again")
            assert (await client.answer(sid, 2))["output"] == "AND AGAIN"
            assert (await client.session(sid))["gpu"] == "curl-1"
