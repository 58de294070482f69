"""One process for each task: its prompt in, its answer out as it comes, its failures told."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from helix_es.core.errors import Misconfigured
from tests.runners.command.kit import PYTHON, Heard, Start, exists, job

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


NOTE = 'echo $$ > "$1/$$"'  # a shell writes its number into a folder


async def test_the_prompt_goes_in_and_the_answer_comes_out(start: Start) -> None:
    work = await start("tr", "a-z", "A-Z")
    heard = Heard()
    outcome = await work.perform(job("hello €"), heard)
    assert (outcome.output, outcome.error, outcome.finish_reason) == ("HELLO €", None, "stop")
    assert heard.text == outcome.output
    assert outcome.first_token_ms is not None
    assert work.detail() == {
        "protocol": "once",
        "pids": [],
        "running": 0,
        "done": 1,
        "failed": 0,
        "last_exit_code": 0,
    }


async def test_the_models_template_is_used_and_no_shell_sees_the_prompt(start: Start) -> None:
    work = await start("cat", slug="mistral")
    prompt = "$(touch /tmp/x) `id` {system} {0} %s"
    assert (await work.perform(job(prompt), Heard())).output == f"[INST]{prompt}[/INST]"


async def test_pieces_are_given_out_while_the_program_runs(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    work = await start(
        "sh", "-c", 'printf one; until [ -e "$1" ]; do sleep 0.01; done; printf two', "sh", str(gate)
    )

    async def open_gate(text: str) -> None:
        gate.touch()

    heard = Heard(open_gate)
    outcome = await work.perform(job(), heard)
    assert heard.pieces == ["one", "two"]
    assert outcome.output == "onetwo"


async def test_characters_are_not_split_and_garbage_is_replaced(start: Start) -> None:
    code = (
        "import os,time\n"
        "for b in '€🙂'.encode(): os.write(1, bytes([b])); time.sleep(0.005)\n"
        "os.write(1, bytes([255, 0, 7]) + '€'.encode()[:2])"
    )
    work = await start(PYTHON, "-c", code)
    outcome = await work.perform(job(), Heard())
    assert outcome.output == "€🙂\ufffd\0\x07\ufffd"


async def test_an_exit_code_fails_the_turn_with_the_end_of_stderr_and_keeps_the_output(start: Start) -> None:
    work = await start(
        "sh", "-c", "printf partial; seq 100000 >&2; echo no such model >&2; exit 3", most_stderr_bytes=100
    )
    outcome = await work.perform(job(), Heard())
    assert outcome.output == "partial"
    assert outcome.error is not None
    assert outcome.error.code == "command_failed"
    assert outcome.error.message.startswith("exit code 3; stderr: ")
    assert outcome.error.message.endswith("100000\nno such model")
    assert len(outcome.error.message) < 140
    assert (work.detail()["failed"], work.detail()["last_exit_code"]) == (1, 3)


async def test_a_signal_is_named(start: Start) -> None:
    work = await start("sh", "-c", "kill -SEGV $$")
    outcome = await work.perform(job(), Heard())
    assert outcome.error is not None
    assert outcome.error.message == "killed by signal SIGSEGV; stderr: (nothing)"


@pytest.mark.parametrize("program", ["exec <&-; sleep 0.1; echo done", "echo done"])
async def test_a_prompt_that_is_not_read_is_no_error(start: Start, program: str) -> None:
    work = await start("sh", "-c", program)
    outcome = await work.perform(job("x" * 1_000_000), Heard())
    assert (outcome.output, outcome.error) == ("done\n", None)


async def test_a_program_that_says_nothing_answers_nothing(start: Start) -> None:
    work = await start("true")
    outcome = await work.perform(job(), Heard())
    assert (outcome.output, outcome.error, outcome.first_token_ms) == ("", None, None)


async def test_a_slow_reader_loses_nothing_and_holds_the_program_back(start: Start, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import os\nos.write(1, b'x' * 400_000)\nopen({str(mark)!r}, 'w').close()"
    work = await start(PYTHON, "-c", code)

    async def slowly(text: str) -> None:
        if heard.text.count("x") < 250_000:
            assert not mark.exists()  # 400,000 bytes fit neither the pipe nor anything of ours
        await asyncio.sleep(0.01)

    heard = Heard(slowly)
    outcome = await work.perform(job(), heard)
    assert (len(outcome.output), outcome.error) == (400_000, None)
    assert max(map(len, heard.pieces)) <= 65_536


async def test_no_more_run_at_once_than_allowed(start: Start, tmp_path: Path) -> None:
    program = 'touch "$1/$$"; sleep 0.05; ls "$1" | wc -l; rm "$1/$$"'
    work = await start("sh", "-c", program, "sh", str(tmp_path), parallel=1)
    outcomes = await asyncio.gather(*(work.perform(job(session=f"s{n}"), Heard()) for n in range(4)))
    assert [each.output for each in outcomes] == ["1\n"] * 4


async def test_what_a_program_finds_in_its_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HELIX_")]:
        monkeypatch.delenv(name)  # whoever runs the tests may have some, as HELIX_CACHE_DIR
    for name in ("HELIX_API_KEY", "HELIX_NATS_URL", "HELIX_NATS_SEED_FILE", "HELIX_DATASET", "FOR_ALL"):
        monkeypatch.setenv(name, "from outside")
    work = await start(PYTHON, "-c", "import json,os\nprint(json.dumps([dict(os.environ), os.getcwd()]))")
    outcome = await work.perform(job(params={"seed": 7, "max_tokens": 5}), Heard())
    found, folder = json.loads(outcome.output)
    assert {
        name: found[name] for name in found if name.startswith("HELIX_") and name != "HELIX_OUTPUT_DIR"
    } == {
        "HELIX_SESSION": "s1",
        "HELIX_TURN": "1",
        "HELIX_ATTEMPT": "1",
        "HELIX_MODEL": "smollm2",
        "HELIX_PARAMS": '{"seed":7,"max_tokens":5}',
        "HELIX_SEED": "7",
    }
    assert found["FOR_ALL"] == "from outside"
    assert folder == os.getcwd()
    task, _, name = found["HELIX_OUTPUT_DIR"].rpartition("/")
    assert name == "output"
    assert not exists(task)


async def test_a_second_attempt_gets_the_same_seed(start: Start) -> None:
    work = await start("sh", "-c", "echo $HELIX_SEED")
    seeds = [(await work.perform(job(session=name), Heard())).output for name in ("s1", "s1", "s2")]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no-such-program", "on the PATH; install it"),
        ("/no/such", "no such program there"),
        ("/", "no such program"),
    ],
)
async def test_a_program_that_is_not_there_is_refused_at_load(start: Start, name: str, text: str) -> None:
    with pytest.raises(Misconfigured, match=f"command {name}: .*{text}"):
        await start(name)


async def test_a_file_that_is_not_executable_is_refused_at_load(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print(1)")
    with pytest.raises(Misconfigured, match=r"chmod \+x it, or write its interpreter"):
        await start(str(program))


async def test_a_program_that_vanishes_fails_turns_and_then_the_runner_leaves(
    start: Start, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho hi\n")
    program.chmod(0o755)
    work = await start(str(program))
    assert (await work.perform(job(), Heard())).output == "hi\n"
    for there in (False, False, True, False, False, False):
        assert work.broken is None
        program.chmod(0o755 if there else 0o644)
        outcome = await work.perform(job(), Heard())
        if there:
            assert outcome.error is None
        else:
            assert outcome.error is not None
            assert "program cannot be started: Permission denied" in outcome.error.message
    assert work.broken is not None
