"""Every example of the README is run, on the running shop."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helix_es.settings import parse
from tests.e2e.shop import HELIX, Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def indented(start: str) -> list[str]:
    """Return the commands of indented blocks that begin with `start`, continued lines joined."""
    joined = README.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith(f"    {start}")]


def shell(command: str) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr)."""
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    return done.returncode, done.stdout, done.stderr


def test_the_python_example_runs(shop: Shop) -> None:
    (source,) = blocks("python")
    source = source.replace("http://127.0.0.1:8080", shop.url)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_configuration_is_accepted() -> None:
    (source,) = blocks("toml")
    assert parse(tomllib.loads(source)).auth.keys


async def test_the_curl_examples_run(shop: Shop, client: Client) -> None:
    sid = (await client.open("Say hi.", params={"max_tokens": 4}))["session_id"]
    await client.answer(sid)
    commands = indented("curl")
    assert len(commands) == 7
    for command in commands:
        ready = command.replace("http://127.0.0.1:8080", shop.url).replace("/SID/", f"/{sid}/")
        code, said, wrong = await asyncio.to_thread(shell, ready)
        assert code == 0, wrong
        assert any(word in said for word in ('"turn"', '"file_id"', '"object":"list"')), said
        assert '"status":4' not in said


def test_the_helix_examples_are_understood(shop: Shop) -> None:
    environment = {"HELIX_URL": shop.url, "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    asked, shown = 0, dict[str, str]()
    for line in indented(".venv/bin/helix") + indented("helix "):
        words = line.split("#")[0].replace('"', "").split()[1:]
        command = words[:2] if words[0] == "runner" else words[:1]
        options = [word for word in words if word.startswith("--")]
        if (name := " ".join(command)) not in shown:
            done = subprocess.run(
                [*HELIX, *command, "--help"],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment,
                check=False,
            )
            assert done.returncode == 0, line
            shown[name] = done.stdout
        for option in options:
            assert option in shown[name], line
        asked += 1
    assert asked >= 8


def test_a_question_on_the_command_line_is_answered(shop: Shop) -> None:
    (line,) = indented('.venv/bin/helix chat "')
    prompt = line.split('"')[1]
    done = subprocess.run(
        [*HELIX, "chat", "--url", shop.url, "--max-tokens", "12", prompt],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "session" in done.stderr
