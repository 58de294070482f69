"""Every example of the README is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helix_es.jetstream.files import Files
from helix_runners.work import Outcome
from tests.runners.command.kit import PYTHON, Heard, Start, job

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
README = (ROOT / "runners/helix_runners/command/README.md").read_text(encoding="utf-8")


def example(title: str) -> str:
    """Return the code under a fence that says `title`."""
    found = re.search(rf"^```{re.escape(title)}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


async def test_once(start: Start) -> None:
    work = await start("sh", "-c", example("sh once"))
    assert (await work.perform(job("hello"), Heard())).output == "HELLO"


async def test_lines(start: Start) -> None:
    work = await start("sh", "-c", example("sh lines --end-line ."), protocol="lines", end_line=".")
    assert (await work.perform(job("hel\nlo"), Heard())).output == "You said: hel lo"
    assert (await work.perform(job("again"), Heard())).output == "You said: again"


async def test_json(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(example("python json"))
    work = await start(PYTHON, str(program), protocol="json", ready_line="loading", parallel=2)
    heard = Heard()
    outcome: Outcome = await work.perform(job("one two three"), heard)
    assert (outcome.output, outcome.error) == ("three two one ", None)
    assert heard.steps[-1] == (3, 3, {})
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 3)
    outcome = await work.perform(job(" "), Heard())
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == ("empty_prompt", "say something")


async def test_a_picture(start: Start, files: Files) -> None:
    work = await start("sh", "-c", example("sh once --type image"), files=files, slug="sdxl")
    outcome = await work.perform(job("a dot", type="image", model="sdxl"), Heard())
    assert outcome.error is None
    info = await files.info(outcome.files[0], "ann")
    assert (info.name, info.media, info.purpose, info.session) == ("dot.png", "image/png", "image", "s1")


def test_every_failure_and_option_that_is_named_exists() -> None:
    sources = "".join(each.read_text() for each in (ROOT / "runners/helix_runners/command").glob("*.py"))
    table = README.partition("| code of the failure | |")[2].partition("## Modules")[0]
    for code in re.findall(r"`([a-z]+_[a-z_]+)`", table):
        assert f'"{code}"' in sources, code
    from helix_runners.command.settings import CommandSettings

    others = {"--mode", "--type", "--model", "--rm", "--init", "--gpus", "--protocol"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - others:
        assert option[2:].replace("-", "_") in CommandSettings.__struct_fields__, option
