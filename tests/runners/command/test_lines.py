"""A program that stays and answers line by line: where answers end, and what its deaths do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helix_es.core.errors import EngineError
from helix_es.core.events import Workload
from helix_runners.command.lines import LineCutter
from tests.runners.command.kit import PYTHON, Heard, Shelf, Start, alive, job, until

anyio = pytest.mark.anyio

ECHO = "while read -r line; do printf '%s\\n\\n' \"<$line>\"; done"


def cut(text: str, end: str) -> tuple[str, bool]:
    """The specification, over whole lines."""
    lines = text.split("\n")
    if end in lines[:-1]:
        return "\n".join(lines[: lines.index(end)]), True
    return text, False


@given(
    pieces=st.lists(st.text("a.\n", max_size=4), max_size=12),
    end=st.sampled_from(["", ".", "..", "a.", "END"]),
)
@example(pieces=["a", "\n", "", ".", "\n"], end=".")
def test_an_answer_ends_at_its_end_line_however_it_is_cut(pieces: list[str], end: str) -> None:
    cutter = LineCutter(end)
    wanted, ended = cut("".join(pieces), end)
    out = ""
    for piece in pieces:
        out += cutter.push(piece)
        assert wanted.startswith(out)  # nothing was given out that had to be taken back
    assert cutter.ended == ended
    if ended:
        assert out == wanted


def test_a_line_that_cannot_be_the_end_is_given_out_as_it_comes() -> None:
    cutter = LineCutter("END")
    assert [cutter.push(piece) for piece in ("E", "X", "Y\nEN", "D\n", "z")] == ["", "EX", "Y", "", ""]
    assert cutter.ended


@anyio
async def test_one_process_answers_one_prompt_after_the_other(start: Start) -> None:
    work = await start("sh", "-c", ECHO, protocol="lines")
    pids = work.detail()["pids"]
    assert (await work.perform(job("one\ntwo\r\nthree"), Heard())).output == "<one two three>"
    outcomes = await asyncio.gather(
        *(work.perform(job(f"p{n}", session=f"s{n}"), Heard()) for n in range(20))
    )
    assert [each.output for each in outcomes] == [f"<p{n}>" for n in range(20)]
    assert work.detail()["pids"] == pids
    assert work.detail()["done"] == 21


@anyio
async def test_answers_of_many_lines_end_at_the_end_line_and_are_streamed(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = (
        'while read -r line; do printf "a\\n\\nb"; until [ -e "$1" ]; do sleep 0.01; done; '
        'printf "c\\r\\nEND\\r\\nstray\\n"; done'
    )
    work = await start("sh", "-c", program, "sh", str(gate), protocol="lines", end_line="END")

    async def open_gate(text: str) -> None:
        gate.touch()

    heard = Heard(open_gate)
    assert (await work.perform(job(), heard)).output == "a\n\nbc"
    assert heard.pieces[0].startswith("a")
    assert (await work.perform(job(), Heard())).output == "a\n\nbc"


@anyio
@pytest.mark.parametrize("ready", ["model loaded", "> "])
async def test_a_banner_is_not_part_of_an_answer(start: Start, ready: str) -> None:
    banner = "echo welcome; echo; sleep 0.3; echo 'the model loaded in 1 s'; printf '> '"
    begun = time.monotonic()
    work = await start("sh", "-c", f"{banner}; {ECHO}", protocol="lines", ready_line=ready)
    assert time.monotonic() - begun > 0.25
    assert (await work.perform(job("p"), Heard())).output in ("<p>", "> <p>")


@anyio
async def test_a_program_that_ends_at_its_start_is_not_loaded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_runners.command.resident.SETTLE_S", 10)
    with pytest.raises(EngineError, match=r"ended at its start: exit code 2; stderr: no GPU"):
        await start("sh", "-c", "echo no GPU >&2; exit 2", protocol="lines")
    with pytest.raises(EngineError, match=r"ended before it was ready; stderr: no GPU"):
        await start("sh", "-c", "echo no GPU >&2; exit 2", protocol="lines", ready_line="ready")


@anyio
async def test_a_program_that_does_not_become_ready_is_not_loaded(start: Start, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not ready within 0.3 s: no line with 'ready'"):
        await start(
            "sh",
            "-c",
            'echo $$ > "$1"; yes',
            "sh",
            str(tmp_path / "pid"),
            protocol="lines",
            ready_line="ready",
            start_limit_s=0.3,
        )
    assert not alive(int((tmp_path / "pid").read_text()))


DIES = """
while read -r line; do
    case $line in
        die*) printf half; echo $line >&2; exit 4;;
        *) printf "$line\\n\\n";;
    esac
done"""


@anyio
async def test_a_death_fails_the_turn_with_its_stderr_and_the_next_finds_a_new_process(start: Start) -> None:
    work = await start("sh", "-c", f"echo secret of another >&2; {DIES}", protocol="lines")
    pids = work.detail()["pids"]
    for _ in range(4):  # an answer in between forgives
        outcome = await work.perform(job("die now"), Heard())
        assert outcome.output == "half"
        assert outcome.error is not None
        assert outcome.error.code == "command_failed"
        assert outcome.error.message == "the program ended: exit code 4; stderr: die now"
        assert (await work.perform(job("fine"), Heard())).output == "fine"
    assert work.detail()["pids"] != pids
    assert work.broken is None


@anyio
async def test_three_deaths_in_a_row_break_the_runner(start: Start) -> None:
    work = await start("sh", "-c", DIES, protocol="lines")
    outcomes = await asyncio.gather(*(work.perform(job("die", session=f"s{n}"), Heard()) for n in range(5)))
    assert all(each.error is not None and each.error.code == "command_failed" for each in outcomes)
    assert (
        work.broken
        == "the program died 3 times in a row; the last time: the program ended: exit code 4; stderr: die"
    )
    assert outcomes[4].error is not None
    assert "died 3 times" in outcomes[4].error.message
    assert work.detail()["pids"] == []


@anyio
async def test_a_program_that_dies_while_nobody_asks_is_started_again(start: Start) -> None:
    work = await start("sh", "-c", "sleep 0.5; exit 1", protocol="lines")
    await until(lambda: work.broken is not None, "breaking")


@anyio
@pytest.mark.parametrize("program", ["read -r line; exec >&-; sleep 60", "exec <&-; sleep 60"])
async def test_a_program_that_closes_its_pipes_is_as_good_as_dead(start: Start, program: str) -> None:
    work = await start("sh", "-c", program, protocol="lines")
    outcome = await asyncio.wait_for(work.perform(job(), Heard()), 10)
    assert outcome.error is not None
    assert f"the program closed its std{'in' if '<' in program else 'out'}; stderr" in outcome.error.message


@anyio
async def test_cancel_ends_the_process_and_the_next_turn_has_another(start: Start) -> None:
    program = 'while read -r line; do case $line in hang) printf begun; sleep 60;; *) printf "$line\\n\\n";; esac; done'
    work = await start("sh", "-c", program, protocol="lines")
    pid = work.detail()["pids"][0]
    for _ in range(4):  # ours to end, so none of its deaths
        heard = Heard()
        turn = asyncio.create_task(work.perform(job("hang", session="s1"), heard))
        waiting = asyncio.create_task(work.perform(job("next", session="s2"), Heard()))
        await asyncio.wait_for(heard.spoken.wait(), 20)
        await work.cancel("s1")
        outcome = await asyncio.wait_for(turn, 20)
        assert (outcome.cancelled, outcome.output) == (True, "begun")
        assert not alive(pid)
        assert (await asyncio.wait_for(waiting, 20)).output == "next"
        pid = work.detail()["pids"][0]
    assert work.broken is None


@anyio
async def test_a_turn_that_waits_is_cancelled_without_disturbing_the_one_that_runs(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = 'while read -r line; do until [ -e "$1" ]; do sleep 0.01; done; printf "$line\\n\\n"; done'
    work = await start("sh", "-c", program, "sh", str(gate), protocol="lines")
    pids = work.detail()["pids"]
    first = asyncio.create_task(work.perform(job("one", session="s1"), Heard()))
    second = asyncio.create_task(work.perform(job("two", session="s2"), Heard()))
    await until(lambda: work.detail()["running"] == 2, "two turns")
    await work.cancel("s2")
    assert (await asyncio.wait_for(second, 20)).cancelled
    gate.touch()
    assert (await first).output == "one"
    assert work.detail()["pids"] == pids


@anyio
async def test_time_limit_and_flood_end_the_process_only_for_their_turn(start: Start) -> None:
    program = 'while read -r line; do case $line in hang) sleep 60;; flood) yes;; *) printf "$line\\n\\n";; esac; done'
    work = await start("sh", "-c", program, protocol="lines", time_limit_s=1, most_output_bytes=1000)
    codes = []
    for prompt in ("hang", "flood", "flood", "flood", "fine"):
        outcome = await work.perform(job(prompt), Heard())
        codes.append(outcome.error.code if outcome.error else outcome.output)
    assert codes == ["time_limit", "output_too_large", "output_too_large", "output_too_large", "fine"]
    assert work.broken is None


@anyio
async def test_a_program_that_talks_to_nobody_without_end_is_stopped(start: Start) -> None:
    work = await start("sh", "-c", "sleep 0.4; yes", protocol="lines", most_output_bytes=1000)
    await until(lambda: work.broken is not None, "breaking")
    assert work.broken is not None
    assert "wrote more than 1000 bytes" in work.broken


@anyio
async def test_a_task_that_brings_files_is_refused(start: Start) -> None:
    class Shop(Shelf):
        async def info(self, file: str, owner: str | None = None) -> Any: ...

        async def fetch(self, file: str, to: Path) -> None: ...

    work = await start("sh", "-c", ECHO, protocol="lines", files=Shop())
    outcome = await work.perform(job("", mode="finetune", dataset="f1"), Heard())
    assert outcome.error is not None
    assert outcome.error.code == "inputs_unsupported"
    assert (await work.perform(job("p"), Heard())).output == "<p>"


@anyio
async def test_another_model_means_another_process(start: Start) -> None:
    from helix_es.core.catalogue import BUILTIN

    work = await start(
        PYTHON,
        "-c",
        "import os\nfor _ in iter(input, 0): print(os.environ['HELIX_MODEL'], end='\\n\\n')",
        protocol="lines",
    )
    pid = work.detail()["pids"][0]
    assert (await work.perform(job(), Heard())).output == "smollm2"
    await work.load(Workload("create", "text", "mistral"), BUILTIN["mistral"])
    assert not alive(pid)
    assert (await work.perform(job(), Heard())).output == "mistral"
