"""HTTP-only workers when something dies or is cancelled: hang-ups, kill -9 of worker and API, two replicas."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from urllib.parse import urlencode

import httpx
import pytest

from helix_es.core import events as e
from tests.e2e.shop import Shop, joined
from tests.e2e.worker import Place, another_api, client_process, open_shop, place, ready

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop without runners of its own."""
    with open_shop(tmp_path_factory.mktemp("workers")) as running:
        yield running


@pytest.fixture
async def here(empty_shop: Shop) -> AsyncIterator[Place]:
    async with place(empty_shop) as made:
        yield made


# -- what is lost on the way


async def test_who_hangs_up_before_the_task_comes_takes_none(here: Place) -> None:
    gone, stays = here.hand("w1"), here.hand("w2")
    await gone.nothing()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await gone.ask()
    await here.open()
    task = await asyncio.wait_for(stays.task(), 4)  # less than what the broker waits for an acknowledgement
    assert task["attempt"] == 1


@pytest.mark.parametrize("slots", [1, 3])
async def test_an_answer_that_nobody_read_is_given_again(here: Place, slots: int) -> None:
    hand = here.hand("w1", slots=slots)
    await hand.nothing()
    host, port = here.shop.url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)))
    raw.sendall(f"GET /api/v1/worker/task?{urlencode(hand.query)} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    sid = await here.open()
    await here.started(sid)
    raw.close()
    if slots > 1:
        await hand.nothing()  # nothing is known of what it holds
    task = await hand.task(**({} if slots == 1 else {"holds": ""}))
    assert (task["session_id"], task["attempt"]) == (sid, 1)
    if slots > 1:
        await hand.nothing(holds=task["task_id"])
    await hand.accepted(task, "complete", output="once")
    assert len([x for x in await here.facts(f"session.{sid}.>") if isinstance(x, e.TurnStarted)]) == 1


async def test_a_worker_that_is_back_says_it_all_again_and_it_is_there_once(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    await hand.accepted(task, "delta", text="All of")
    again = await hand.task()  # the process was killed, and started anew in time
    assert again["task_id"] == task["task_id"]
    for piece in ("All ", "of ", "it."):
        await hand.accepted(again, "delta", text=piece)
    await hand.accepted(again, "complete")
    assert (await here.client.answer(sid))["output"] == "All of it."


async def test_a_killed_workers_turn_is_done_by_another_and_the_stream_goes_on(here: Place) -> None:
    script = (
        "import helix_worker, threading\n"
        "def do(task):\n    yield 'Once upon'\n    threading.Event().wait()\n"
        "helix_worker.serve(do)\n"
    )
    first = client_process(here.shop, "w1", script)
    try:
        sid = await here.open()
        text, names = "", []
        async with asyncio.timeout(40):
            async for event in here.client.follow(sid, 1):
                text = joined(text, event)
                names.append(event.name)
                if text == "Once upon" and first.returncode is None:
                    first.kill()
                    first.wait()
                    other = here.hand("w2")
                    task = await other.task(wait_s=30)
                    assert (task["session_id"], task["attempt"]) == (sid, 2)
                    await other.accepted(task, "delta", text="Once more")
                    await other.accepted(task, "complete")
        assert text == (await here.turn(sid))["output"] == "Once more"
        assert names.count("turn.started") == 2
        ghost = {"task_id": task["task_id"].replace(".2.w2.", ".1.w1.")}
        assert (await other.say(ghost, "complete")).status_code == 404
    finally:
        first.kill()
        first.wait()


async def test_an_old_attempt_is_refused_and_changes_nothing(here: Place) -> None:
    old, new = here.hand("w1"), here.hand("w2")
    sid = await here.open()
    task = await old.task()
    fresh = await new.task(wait_s=30)  # w1 was silent for longer than its lease
    assert fresh["attempt"] == 2
    before = await here.seq()
    for verb, body in (
        ("delta", {"text": "late"}),
        ("complete", {"output": "late"}),
        ("fail", {"message": "x"}),
    ):
        answer = await old.say(task, verb, **body)
        assert (answer.status_code, answer.json()["code"]) == (409, "stale_attempt"), verb
    assert await here.seq() == before
    await new.accepted(fresh, "complete", output="right")
    assert (await here.turn(sid))["output"] == "right"


# -- the API dies


async def test_a_killed_api_in_the_middle_of_a_poll_and_of_a_task_loses_neither(here: Place) -> None:
    script = (
        "import helix_worker, time\n"
        "def do(task):\n"
        "    for n in range(30):\n        time.sleep(0.1)\n        yield f'{n} '\n"
        "helix_worker.serve(do)\n"
    )
    worker = client_process(here.shop, "w1", script, lease_s=20)
    try:

        async def there() -> bool:
            return "w1" in await here.gpus()

        await here.until(there, "the worker")
        await kill_api(here)  # in the middle of its poll
        sid = await here.open()
        await here.started(sid)
        await here.until(lambda: spoke(here, sid), "its first words")
        await kill_api(here)  # in the middle of its task
        turn = await here.client.answer(sid, seconds=40)
        assert (turn["output"], turn["attempt"]) == ("".join(f"{n} " for n in range(30)), 1)
    finally:
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0
    assert "w1" not in await here.gpus(), "it left in order"


async def test_a_killed_broker_cuts_no_answer_short(here: Place) -> None:
    script = (
        "import helix_worker, time\n"
        "def do(task):\n"
        "    for n in range(25):\n        time.sleep(0.1)\n        yield f'{n} '\n"
        "helix_worker.serve(do)\n"
    )
    worker = client_process(here.shop, "w1", script, lease_s=20)
    try:
        sid = await here.open()
        await here.until(lambda: spoke(here, sid), "its first words")
        here.shop.kill("nats")  # what was said until now was in its memory
        turn = await here.client.answer(sid, seconds=40)
        assert (turn["output"], turn["attempt"]) == ("".join(f"{n} " for n in range(25)), 1)
        again = await here.open()
        assert (await here.client.answer(again, seconds=40))["state"] == "completed"
    finally:
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0


async def test_an_api_that_stops_ends_its_polls_in_order(here: Place) -> None:
    async with another_api(here.shop) as url:
        hand = here.hand("w1", url)
        polling = asyncio.create_task(hand.ask(wait_s=30))

        async def there() -> bool:
            return "w1" in await here.gpus()

        await here.until(there, "the worker")
    with suppress(httpx.RemoteProtocolError):  # it may close before it answers
        assert (await polling).status_code == 204
    said = (here.shop.folder / "api-2.log").read_text()
    assert "Traceback" not in said, said


async def kill_api(here: Place) -> None:
    here.shop.kill("api")
    await ready(here.shop.url)


async def spoke(here: Place, sid: str) -> bool:
    async for event in here.client.events(sid, 1):
        if event.name == "delta":
            return True
    return False


async def test_two_replicas_are_one_api(here: Place) -> None:
    async with another_api(here.shop) as url:
        one, two = here.hand("w1", slots=2), here.hand("w1", url, slots=2)
        polls = [asyncio.create_task(hand.task()) for hand in (one, two)]
        sids = {await here.open(), await here.open()}
        tasks = [await poll for poll in polls]
        assert {task["session_id"] for task in tasks} == sids
        lives = [x for x in await here.facts("gpu.w1.>") if isinstance(x, e.GpuJoined)]
        incarnations = {task["task_id"].rpartition(".")[2] for task in tasks}
        assert incarnations == {lives[-1].incarnation}, "both go on with the same life"
        for n in range(12):  # as behind a load balancer
            await (one, two)[n % 2].accepted(tasks[0], "delta", text=f"{n} ")
        await two.accepted(tasks[0], "complete")
        await one.accepted(tasks[0], "complete")
        turn = await here.client.answer(tasks[0]["session_id"])
        assert turn["output"] == "".join(f"{n} " for n in range(12))
        polling = asyncio.create_task(two.task())
        await here.client.say(tasks[0]["session_id"], "More")
        task = await polling
        assert (task["mode"], task["turn"]) == ("continue", 2)
        await one.accepted(task, "complete", output="more")
        await one.accepted(tasks[1], "fail", message="enough")


# -- cancelling


async def test_who_is_asked_to_stop_hears_it_with_the_next_word(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    await hand.accepted(task, "delta", text="so far")
    await here.client.http.post(f"/sessions/{sid}/turns/1/cancel")
    assert (await hand.accepted(task, "delta"))["cancel"]
    assert (await hand.accepted(task, "complete"))["cancel"]
    assert (await hand.accepted(task, "complete"))["cancel"], "said twice"
    turn = await here.turn(sid)
    assert (turn["state"], turn["output"]) == ("cancelled", "so far")


async def test_a_turn_that_was_to_stop_and_is_in_nobodys_hand_is_ended(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    await hand.accepted(task, "delta", text="so far")
    await here.client.http.post(f"/sessions/{sid}/turns/1/cancel")
    await hand.nothing()  # a worker of one slot that asks has nothing in hand
    turn = await here.turn(sid)
    assert (turn["state"], turn["output"]) == ("cancelled", "so far")


async def test_the_shipped_client_stops_and_keeps_what_was_said(here: Place) -> None:
    script = (
        "import helix_worker, time\n"
        "def do(task):\n"
        "    for n in range(600):\n        time.sleep(0.05)\n        yield f'{n} '\n"
        "helix_worker.serve(do)\n"
    )
    worker = client_process(here.shop, "w1", script)
    try:
        sid = await here.open()
        await here.until(lambda: spoke(here, sid), "its first words")
        await here.client.http.post(f"/sessions/{sid}/turns/1/cancel")
        turn = await here.client.answer(sid, seconds=10)
        assert turn["state"] == "cancelled"
        assert turn["output"].startswith("0 1 ")
        second = await here.open()
        await here.until(lambda: spoke(here, second), "the next task's words")
        await here.client.http.delete(f"/sessions/{second}")
    finally:
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0
