"""A program that stays and speaks JSON lines: several tasks at once, and what one does to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from helix_es.core.events import Message
from helix_runners.command.work import CommandWork
from helix_runners.work import Outcome
from tests.runners.command.kit import PYTHON, Heard, Start, alive, exists, job, until
from tests.runners.command.obedient import PROGRAM

pytestmark = pytest.mark.anyio


async def speak(start: Start, **more: Any) -> CommandWork:
    return await start(PYTHON, "-c", PROGRAM, protocol="json", **{"parallel": 8, **more})


def ask(
    work: CommandWork, prompt: str, session: str = "s1", heard: Heard | None = None
) -> asyncio.Task[Outcome]:
    return asyncio.create_task(work.perform(job(prompt, session=session), heard or Heard()))


async def test_several_tasks_at_once_in_one_process(start: Start) -> None:
    work = await speak(start)
    pids = work.detail()["pids"]
    heard = [Heard() for _ in range(5)]
    waiting = [ask(work, f"a{n};wait;b{n}", f"s{n}", heard[n]) for n in range(5)]
    for each in heard:
        await asyncio.wait_for(each.spoken.wait(), 20)
    last = await ask(work, "€;go", "s9")
    assert [(await each).output for each in waiting] == [f"a{n}b{n}" for n in range(5)]
    assert (last.output, last.finish_reason) == ("€", "length")
    usage = last.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 1, 2)
    assert work.detail()["pids"] == pids
    assert work.detail()["done"] == 6


async def test_no_more_than_parallel(start: Start) -> None:
    work = await speak(start, parallel=1)
    heard = Heard()
    first, second = ask(work, "a;wait", "s1"), ask(work, "go", "s2", heard)
    await asyncio.sleep(0.2)
    assert not second.done()
    await work.cancel("s1")
    assert (await first).cancelled
    assert (await second).error is None


async def test_what_a_task_says(start: Start) -> None:
    import json

    work = await start(PYTHON, "-c", PROGRAM, protocol="json", slug="mistral", template="{prompt}")
    history = [Message(role="user", content="hi"), Message(role="assistant", content="hello")]
    given = job("task?", system="Be brief.", history=history, params={"seed": 5, "temperature": 0.5})
    task = json.loads((await work.perform(given, Heard())).output)
    assert task.pop("id").startswith("s1.1.1.")
    assert Path(task.pop("output_dir")).name == "output"
    assert task == {
        "session": "s1",
        "turn": 1,
        "attempt": 1,
        "mode": "create",
        "type": "text",
        "model": "mistral",
        "prompt": "task?",
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "task?"},
        ],
        "params": {"seed": 5, "temperature": 0.5},
        "seed": 5,
        "dataset": None,
        "input_image": None,
        "adapter_dir": None,
    }


async def test_steps_and_stray_prints(start: Start) -> None:
    work = await speak(start)
    heard = Heard()
    step = 'raw:{"id":"ID","step":3,"steps":9,"detail":{"loss":0.5}}'
    prompt = f'raw:loading shards;raw:{{"x": 1}};raw:{{"id": "nobody", "text": "x"}};{step};ok'
    outcome = await ask(work, prompt, heard=heard)
    assert (outcome.output, outcome.error) == ("ok", None)
    assert heard.steps == [(3, 9, {"loss": 0.5})]


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ('{"id":"ID","error":{"code":"too_hot","message":"let it cool"}}', "too_hot", "let it cool"),
        ('{"id":"ID","error":{"code":"NO GOOD\\n","message":"m"}}', "command_failed", "m"),
        ('{"id":"ID","error":{"message":"m"}}', "command_failed", "m"),
        ('{"id":"ID","text":7}', "bad_answer", "Expected `str`, got `int` - at `$.text`"),
        ('{"id":"ID","done":true,"usage":{"prompt_tokens":-1}}', "bad_answer", ">= 0"),
        ('{"id":"ID","step":1,"detail":{"x":"' + "y" * 20_000 + '"}}', "bad_answer", "detail: longer than"),
    ],
)
async def test_errors_of_one_task(start: Start, line: str, code: str, text: str) -> None:
    work = await speak(start)
    pids = work.detail()["pids"]
    late = '{"id":"ID","text":"late","step":1}'
    heard = Heard()
    outcome = await ask(work, f"half;raw:{line}\n{late};wait", heard=heard)
    assert heard.steps == []
    assert outcome.output == "half"
    assert outcome.error is not None
    assert outcome.error.code == code
    assert text in outcome.error.message
    assert work.detail()["pids"] == pids
    assert (await ask(work, "fine")).output == "fine"


async def test_cancel_is_told_to_the_program_which_goes_on_with_the_others(start: Start) -> None:
    work = await speak(start)
    pids = work.detail()["pids"]
    heard = Heard()
    first, second = ask(work, "a;wait;never", "s1", heard), ask(work, "b;wait;c", "s2")
    await asyncio.wait_for(heard.spoken.wait(), 20)
    await work.cancel("s1")
    outcome = await asyncio.wait_for(first, 20)
    assert (outcome.cancelled, outcome.output) == (True, "a")
    await ask(work, "go", "s3")
    assert (await second).output == "bc"
    assert work.detail()["pids"] == pids


async def test_a_program_that_does_not_stop_is_ended_and_started_again(start: Start) -> None:
    work = await speak(start)
    pid = work.detail()["pids"][0]
    heard = Heard()
    first, second = ask(work, "a;wait;stubborn", "s1", heard), ask(work, "b;wait", "s2")
    await asyncio.wait_for(heard.spoken.wait(), 20)
    await work.cancel("s1")
    assert (await asyncio.wait_for(first, 20)).cancelled
    assert not alive(pid)
    outcome = await second
    assert outcome.error is not None
    assert outcome.error.code == "command_failed"
    assert (await ask(work, "fine")).output == "fine"
    assert work.broken is None


async def test_a_task_that_is_cancelled_is_withdrawn(start: Start) -> None:
    work = await speak(start)
    pid = work.detail()["pids"][0]
    heard = Heard()
    turn = ask(work, "a;wait;stubborn", "s1", heard)
    await asyncio.wait_for(heard.spoken.wait(), 20)
    turn.cancel()
    await asyncio.sleep(0)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until(lambda: not alive(pid), "end")
    assert (await ask(work, "fine")).output == "fine"


async def test_a_flood_and_a_time_limit_disturb_no_other_task(start: Start) -> None:
    work = await speak(start, most_output_bytes=10_000, time_limit_s=1.5, grace_s=10)
    pids = work.detail()["pids"]
    hanging = ask(work, "a;wait;ok", "s1")
    flood = await ask(work, "flood", "s2")
    assert flood.error is not None
    assert (flood.error.code, len(flood.output)) == ("output_too_large", 10_000)
    outcome = await hanging
    assert outcome.error is not None
    assert (outcome.error.code, outcome.output) == ("time_limit", "a")
    assert (await ask(work, "fine")).output == "fine"
    assert work.detail()["pids"] == pids


async def test_a_slow_reader_of_a_task_that_fails_hears_all_that_was_said(start: Start) -> None:
    work = await speak(start)

    async def slowly(text: str) -> None:
        await asyncio.sleep(0.2)

    outcome = await ask(work, 'a;b;c;d;raw:{"id":"ID","error":{"message":"m"}}', heard=Heard(slowly))
    assert outcome.error is not None
    assert outcome.output == "abcd"


async def test_a_line_without_end_is_a_flood(start: Start) -> None:
    work = await speak(start, most_output_bytes=10_000)
    outcome = await ask(work, "a;longline;wait")
    assert outcome.error is not None
    assert (outcome.error.code, outcome.output) == ("output_too_large", "a")
    assert (await ask(work, "fine")).output == "fine"


async def test_a_death_fails_all_and_three_in_a_row_break(start: Start) -> None:
    work = await speak(start)
    for _ in range(3):
        heard = Heard()
        first = ask(work, "a;wait", "s1", heard)
        await asyncio.wait_for(heard.spoken.wait(), 20)
        outcomes = [await ask(work, "die", "s2"), await first]
        for outcome in outcomes:
            assert outcome.error is not None
            assert outcome.error.message == "the program ended: exit code 9; stderr: out of memory"
    assert work.broken is not None
    outcome = await ask(work, "fine")
    assert outcome.error is not None


async def test_a_turn_that_comes_while_the_program_dies_waits_for_the_next_one(
    start: Start, tmp_path: Path
) -> None:
    work = await speak(start)
    dying = ask(work, f"a;hangup:{tmp_path}/closed", "s1")
    await until(lambda: exists(f"{tmp_path}/closed"), "end of stdout")
    assert (await ask(work, "fine", "s2")).output == "fine"
    outcome = await dying
    assert outcome.error is not None
    assert "exit code 5" in outcome.error.message


async def test_what_others_left_on_stderr_is_not_told(start: Start) -> None:
    work = await speak(start)
    await ask(work, "err:a secret;ok", "s1")
    outcome = await ask(work, "err:mine;die", "s2")
    assert outcome.error is not None
    assert outcome.error.message == "the program ended: exit code 9; stderr: mine\nout of memory"


async def test_a_program_that_reads_nothing_does_not_hold_up_the_runner(start: Start) -> None:
    work = await start("sleep", "60", protocol="json", parallel=4, time_limit_s=0.3)
    outcomes = await asyncio.gather(*(ask(work, "x" * 500_000, f"s{n}") for n in range(4)))
    assert {each.error.code for each in outcomes if each.error} == {"time_limit"}


async def test_an_answer_in_pieces_of_bytes_is_whole(start: Start) -> None:
    code = (
        "import os,json,sys,time\n"
        "for line in sys.stdin:\n"
        "    id = json.loads(line)['id']\n"
        "    for b in json.dumps({'id': id, 'text': '€🙂', 'done': True}, ensure_ascii=False).encode() + b'\\n':\n"
        "        os.write(1, bytes([b]))\n"
    )
    work = await start(PYTHON, "-c", code, protocol="json")
    assert (await ask(work, "p")).output == "€🙂"


async def test_half_a_surrogate_is_not_an_answer(start: Start) -> None:
    work = await speak(start)
    outcome = await ask(work, 'raw:{"id":"ID","text":"\\\\ud83d"};ok')
    assert outcome.error is None or outcome.error.code == "bad_answer"
    outcome.output.encode()
