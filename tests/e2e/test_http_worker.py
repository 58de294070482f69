"""Workers that speak only HTTP against a whole shop: tasks, slots, stickiness, pictures, curl and commands."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from helix_es.core import events as e
from tests.e2e.shop import Shop, joined
from tests.e2e.worker import CLIENT, LEASE_S, Place, child, open_shop, place

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop without runners of its own."""
    with open_shop(tmp_path_factory.mktemp("workers")) as running:
        yield running


@pytest.fixture
async def here(empty_shop: Shop) -> AsyncIterator[Place]:
    async with place(empty_shop) as made:
        yield made


async def test_a_long_poll_gets_the_task_and_says_all_that_a_model_needs(here: Place) -> None:
    hand = here.hand("w1", kind="l4")
    polling = asyncio.create_task(hand.task())
    sid = await here.open("Hi [{system}]", system="Be brief.", params={"max_tokens": 7})
    task = await polling
    assert task["task_id"].startswith(f"{sid}.1.1.w1.")
    wanted = {
        "session_id": sid,
        "turn": 1,
        "attempt": 1,
        "mode": "create",
        "type": "text",
        "model": "mistral",
        "model_name": "mistralai/Mistral-7B-Instruct-v0.1",
        "prompt": "Hi [{system}]",
        "system": "Be brief.",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi [{system}]"},
        ],
        "params": {"max_tokens": 7},
        "template_prompt": "[INST]Hi [{system}][/INST]",
        "adapter": None,
        "dataset": None,
        "input_file": None,
        "lease_s": LEASE_S,
    }
    assert {name: task[name] for name in wanted} == wanted
    for piece in ("Hel", "lo", ""):
        assert not (await hand.accepted(task, "delta", text=piece))["cancel"]
    await hand.accepted(task, "delta", step=1, steps=4, detail={"loss": 0.5})
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    await hand.accepted(task, "complete", usage=usage, finish_reason="length")
    turn = await here.turn(sid)
    assert (turn["state"], turn["output"], turn["finish_reason"]) == ("completed", "Hello", "length")
    assert turn["usage"] == {**usage, "cached_tokens": 0}
    assert turn["progress"] == {"step": 1, "steps": 4, "detail": {"loss": 0.5}}
    assert turn["queued_at"] <= turn["started_at"] <= turn["first_token_at"] <= turn["ended_at"]
    gpu = (await here.gpus())["w1"]
    assert (gpu["kind"], gpu["state"], gpu["model"], gpu["sessions"]) == ("l4", "ready", "mistral", [sid])


async def test_the_next_turn_comes_to_the_worker_that_has_the_session(here: Place) -> None:
    one, two = here.hand("w1", slots=2), here.hand("w2", slots=2)
    sid = await here.open("My name is Zoe.")
    task = await one.task()
    await one.accepted(task, "complete", output="Hello Zoe.")
    idle = asyncio.create_task(two.ask(wait_s=1.5))  # emptier than w1, and waiting before it
    for turn in (2, 3):
        polling = asyncio.create_task(one.task())
        await here.client.say(sid, f"Turn {turn}?", params={"seed": turn})
        task = await polling
        assert (task["turn"], task["mode"], task["params"]) == (turn, "continue", {"seed": turn})
        await one.accepted(task, "complete", output=f"Answer {turn}.")
    assert [each["content"] for each in task["messages"]] == [
        *("My name is Zoe.", "Hello Zoe.", "Turn 2?", "Answer 2.", "Turn 3?")
    ]
    assert (await idle).status_code == 204
    assert (await here.client.session(sid))["gpu"] == "w1"


async def test_words_arrive_as_they_are_said_and_a_failure_is_told(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    names: list[str] = []
    text = ""
    async for event in here.client.events(sid, 1):
        names.append(event.name)
        text = joined(text, event)
        if event.name == "turn.started":
            await hand.accepted(task, "delta", text="half an ")
            await hand.accepted(task, "delta", text="answer", step=1, steps=2)
        if text == "half an answer" and "progress" in names and "failing" not in names:
            names.append("failing")
            await hand.accepted(task, "fail", code="out_of_memory", message="no room for that")
    assert names[-1] == "turn.failed"
    turn = await here.turn(sid)
    assert turn["error"] == {"code": "out_of_memory", "message": "no room for that"}
    assert (turn["state"], turn["output"]) == ("failed", "half an answer")
    assert (await here.client.session(sid))["state"] == "idle", "the next turn may do better"


async def test_what_is_said_anew_takes_the_place_of_what_was_said(here: Place) -> None:
    hand = here.hand("anew-1")
    await hand.nothing()
    sid = await here.open("Hello")
    task = await hand.task()
    text, heard = "", asyncio.Event()

    async def listen() -> str:
        nonlocal text
        async for event in here.client.follow(sid, 1):
            text = joined(text, event)
            if text == "A" * 10:
                heard.set()
        return text

    listening = asyncio.create_task(listen())
    await hand.accepted(task, "delta", text="A" * 10)
    await asyncio.wait_for(heard.wait(), 20)
    again = await hand.task()
    assert again["task_id"] == task["task_id"], "it asks, so it has lost its task"
    await hand.accepted(again, "delta", text="BBBB")
    await hand.accepted(again, "delta", text="CCCCCCCC")
    await hand.accepted(again, "delta", text="DD", offset=4)
    await hand.accepted(again, "complete")
    assert (await here.turn(sid))["output"] == "BBBBDD"
    assert await asyncio.wait_for(listening, 20) == "BBBBDD"
    fresh = [event async for event in here.client.events(sid, 1) if event.name == "delta"]
    assert "".join(event.data["text"] for event in fresh) == "BBBBDD"


async def test_a_worker_holds_as_many_sessions_as_it_has_slots(here: Place) -> None:
    hand = here.hand("w1", slots=2)
    sids = [await here.open(f"prompt {n}") for n in range(3)]
    tasks = [await hand.task(), await hand.task()]
    assert [task["session_id"] for task in tasks] == sids[:2]
    await hand.nothing()
    assert (await here.client.session(sids[2]))["queue"]["position"] == 1
    assert (await here.gpus())["w1"]["slots_used"] == 2
    for task in tasks:
        await hand.accepted(task, "complete", output="done")
    assert (await hand.task())["session_id"] == sids[2], "a silent session gives way"


async def test_polls_at_once_never_exceed_the_slots(here: Place) -> None:
    hand = here.hand("w1", slots=2)
    polls = [asyncio.create_task(hand.ask(wait_s=2)) for _ in range(5)]
    for n in range(5):
        await here.open(f"prompt {n}")
    answers = [await poll for poll in polls]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 204, 204, 204]
    starts = [each for each in await here.facts("gpu.w1.>") if isinstance(each, e.GpuJoined)]
    assert len(starts) >= 1
    assert (await here.gpus())["w1"]["slots_used"] == 2


async def test_the_floor_knows_the_worker_while_it_asks_and_until_its_lease_ends(here: Place) -> None:
    hand = here.hand("w1")
    await hand.nothing(wait_s=1.2)

    async def beats() -> bool:
        return bool((await here.gpus())["w1"]["heartbeat_at"])

    await here.until(beats, "a heartbeat that can be read", 5)
    gpu = (await here.gpus())["w1"]
    assert gpu["detail"] == {"over": "http"}
    assert "http-" not in str(gpu), "an incarnation is a secret"

    async def gone() -> bool:
        return "w1" not in await here.gpus()

    await here.until(gone, "the end of the lease", 12)
    assert isinstance((await here.facts("gpu.w1.>"))[-1], e.GpuLost)
    await hand.nothing()
    assert (await here.gpus())["w1"]["state"] == "ready", "it is back with its next poll"
    assert (await hand.http.delete("/w1")).status_code == 204
    assert "w1" not in await here.gpus()
    assert (await hand.http.delete("/w1")).status_code == 204, "gone is gone"


async def test_signs_of_life_keep_a_silent_computation(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    for _ in range(5):
        await asyncio.sleep(1)
        await hand.accepted(task, "delta")
    await hand.accepted(task, "complete", output="at last")
    assert (await here.turn(sid))["attempt"] == 1


# -- files


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40


async def test_pictures_go_out_come_back_and_belong_to_their_session(here: Place) -> None:
    hand = here.hand("w1", type="Image", model_name="scenes")
    sid = await here.open("a red house", model="scenes", type="image")
    task = await hand.task()
    url = f"/task/{task['task_id']}"
    for name, data, code in (
        ("a.png", b"<html>", "invalid_file"),
        ("a.png", b"", "invalid_file"),
        ("../a.png", PNG, "invalid_file"),
    ):
        answer = await hand.http.post(f"{url}/files", files={"file": (name, data)})
        assert (answer.status_code, answer.json()["code"]) == (422, code), name
    answer = await hand.http.post(f"{url}/files", data={"purpose": "dataset"}, files={"file": ("a.png", PNG)})
    assert answer.json()["code"] == "invalid_file", "datasets are what users bring"
    answer = await hand.http.post(f"{url}/files", files={"file": ("a.png", PNG)})
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert (file["media_type"], file["purpose"], file["session_id"]) == ("image/png", "image", sid)
    assert (await hand.http.get(f"{url}/input/{file['file_id']}")).json()["code"] == "file_not_found"
    await hand.accepted(task, "complete", files=[file["file_id"]])
    assert (await here.turn(sid))["files"] == [file["file_id"]]
    got = await here.client.http.get(f"/files/{file['file_id']}/content")
    assert (got.content, got.headers["content-type"]) == (PNG, "image/png")

    polling = asyncio.create_task(hand.task())
    await here.client.say(sid, "make it blue")
    task = await polling
    assert task["input_file"] == file["file_id"]
    got = await hand.http.get(f"/task/{task['task_id']}/input/{file['file_id']}")
    assert (got.status_code, got.content) == (200, PNG)
    await hand.accepted(task, "complete")
    answer = await hand.http.get(f"/task/{task['task_id']}/input/{file['file_id']}")
    assert answer.json()["code"] == "stale_attempt", "only while it works on it"


# -- the shell, and the command line


async def test_a_loop_of_curl_is_a_worker(here: Place) -> None:
    here.hand("curl-1")  # so that it leaves
    readme = (CLIENT.parent / "README.md").read_text()
    script = readme.partition("```bash\n")[2].partition("```")[0]
    assert "http://127.0.0.1:8080" in script
    script = script.replace("http://127.0.0.1:8080", here.shop.url)
    loop = child(here.shop, "curl", ["bash", "-euc", script])
    try:
        sid = await here.open("hello there")
        assert (await here.client.answer(sid, seconds=20))["output"] == "HELLO THERE"
        await here.client.say(sid, "and again")
        assert (await here.client.answer(sid, 2, seconds=20))["output"] == "AND AGAIN"
    finally:
        os.killpg(loop.pid, signal.SIGKILL)
        loop.wait()


async def test_a_command_is_a_worker(here: Place) -> None:
    words = [sys.executable, "-m", "helix_es.cli.__main__", "worker", "--url", here.shop.url]
    words += ["--model", "mistral", "--name", "w1", "--slots", "2", "--lease-s", "5", "--"]
    script = 'tr a-z A-Z; echo " by $HELIX_SESSION"; echo made > "$HELIX_OUTPUT_DIR/note.txt"'
    worker = child(here.shop, "command", [*words, "sh", "-c", script])
    try:
        sids = [await here.open(f"hello {n}") for n in range(3)]
        for n, sid in enumerate(sids):
            turn = await here.client.answer(sid, seconds=20)
            assert turn["output"] == f"[INST]HELLO {n}[/INST] by {sid}\n"
            (file,) = turn["files"]
            assert (await here.client.http.get(f"/files/{file}/content")).content == b"made\n"
    finally:
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0
    assert "w1" not in await here.gpus()
