"""A worker over one websocket: the same tasks, the same fences; a broken socket loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from helix_es.core import events as e
from tests.e2e.shop import Shop
from tests.e2e.worker import LEASE_S, Place, open_shop, place

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(120)]

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop without runners of its own."""
    with open_shop(tmp_path_factory.mktemp("workers")) as running:
        yield running


@pytest.fixture
async def here(empty_shop: Shop) -> AsyncIterator[Place]:
    async with place(empty_shop) as made:
        yield made


class Line:
    """One websocket of a worker."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def hear(self, kind: str, wait_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next message, which is of that kind."""
        message = json.loads(await asyncio.wait_for(self.socket.recv(), wait_s))
        assert message["type"] == kind, message
        return dict(message)

    async def task(self) -> dict[str, Any]:
        """Return the task that comes next."""
        message = await self.hear("task")
        assert message["task"]["task_id"] == message["task_id"]
        return dict(message["task"])

    async def say(self, kind: str, task: dict[str, Any] | str, **body: Any) -> None:
        name = task if isinstance(task, str) else task["task_id"]
        await self.socket.send(json.dumps({"type": kind, "task_id": name, **body}))

    async def accepted(self, kind: str, task: dict[str, Any], **body: Any) -> None:
        await self.say(kind, task, **body)
        answer = await self.hear("accepted")
        assert (answer["task_id"], answer["of"]) == (task["task_id"], kind)

    async def refused(self, code: str) -> dict[str, Any]:
        answer = await self.hear("error")
        assert answer["code"] == code, answer
        assert answer["detail"]
        return answer

    async def silent(self, wait_s: float = 0.4) -> None:
        with pytest.raises(TimeoutError):
            await self.hear("nothing", wait_s)


@asynccontextmanager
async def line(here: Place, name: str = "w1", **query: Any) -> AsyncIterator[Line]:
    here.hand(name)  # so that it leaves
    asked = {"mode": "Create", "type": "Text", "model_name": "mistral", "worker": name, "lease_s": LEASE_S}
    url = f"{here.shop.url.replace('http', 'ws')}/api/v1/worker/ws?{urlencode({**asked, **query})}"
    async with connect(url) as socket:
        yield Line(socket)


async def test_tasks_come_and_words_go_over_one_socket(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open("Hi")
        task = await one.task()
        assert (task["session_id"], task["mode"], task["prompt"], task["lease_s"]) == (
            sid,
            "create",
            "Hi",
            LEASE_S,
        )
        await one.accepted("delta", task, text="Hel")
        await one.accepted("delta", task, text="lo", step=1, steps=1)
        await one.accepted("complete", task)
        assert (await here.client.answer(sid))["output"] == "Hello"
        await here.client.say(sid, "And?")
        task = await one.task()
        assert (task["mode"], task["turn"]) == ("continue", 2)
        await one.accepted("fail", task, code="no_idea", message="ask me something else")
        assert (await here.turn(sid, 2))["error"]["code"] == "no_idea"


async def test_the_open_socket_is_the_sign_of_life(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open()
        task = await one.task()
        await asyncio.sleep(LEASE_S + 1.5)  # not a word for longer than its lease
        await one.accepted("complete", task, output="at last")
        turn = await here.turn(sid)
        assert (turn["state"], turn["attempt"]) == ("completed", 1)


async def test_as_many_tasks_at_once_as_there_are_slots(here: Place) -> None:
    async with line(here, slots=2) as one:
        sids = [await here.open(str(n)) for n in range(3)]
        tasks = [await one.task(), await one.task()]
        await one.silent()
        await one.accepted("complete", tasks[1], output="second")
        await one.accepted("complete", tasks[0], output="first")
        third = await one.task()
        assert [each["session_id"] for each in (*tasks, third)] == sids
        await one.accepted("complete", third, output="third")


async def test_who_is_asked_to_stop_is_told_once(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open()
        task = await one.task()
        await one.accepted("delta", task, text="so far")
        await here.client.http.post(f"/sessions/{sid}/turns/1/cancel")
        assert (await one.hear("cancel"))["task_id"] == task["task_id"]
        await one.silent(1.3)
        await one.accepted("complete", task)
        turn = await here.turn(sid)
        assert (turn["state"], turn["output"]) == ("cancelled", "so far")
        sid = await here.open()
        task = await one.task()
        await here.client.http.delete(f"/sessions/{sid}")
        assert (await one.hear("cancel"))["task_id"] == task["task_id"], "nobody wants it"
        await one.say("complete", task)
        await one.refused("stale_attempt")


async def test_rubbish_is_answered_and_drops_nothing(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open()
        task = await one.task()
        before = await here.seq()
        for raw, code in (
            ("{", "invalid_json"),
            (b"\xff\xfe", "invalid_json"),
            ("[" * 100_000, "invalid_json"),
            ("[]", "invalid_request"),
            ("{}", "invalid_request"),
            ('{"type": "dance", "task_id": "x"}', "invalid_request"),
            ('{"type": "delta"}', "invalid_request"),
            ('{"type": "delta", "task_id": 5}', "invalid_request"),
            ('{"type": "delta", "task_id": "rubbish"}', "task_not_found"),
            ('{"type": "delta", "task_id": "s.1.1.w2.http-0"}', "task_not_found"),
            (json.dumps({"type": "delta", "task_id": task["task_id"], "txt": "x"}), "invalid_request"),
            (json.dumps({"type": "complete", "task_id": task["task_id"], "usage": 5}), "invalid_request"),
            (json.dumps({"type": "delta", "task_id": "x", "text": "x" * 800_000}), "body_too_large"),
        ):
            await one.socket.send(raw)
            await one.refused(code)
        forged = task["task_id"][:-4] + "0000"
        await one.say("complete", forged, output="x")
        assert (await one.refused("task_not_found"))["task_id"] == forged
        assert await here.seq() == before
        await one.accepted("complete", task, output="unharmed")
        assert (await here.turn(sid))["output"] == "unharmed"


async def test_a_socket_that_breaks_loses_no_task(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open()
        task = await one.task()
        await one.accepted("delta", task, text="half")
    async with line(here) as one:  # it says nothing of what it holds: it begins anew
        again = await one.task()
        assert again["task_id"] == task["task_id"]
        await one.accepted("delta", again, text="all")
    async with line(here, holds=task["task_id"]) as one:  # it went on computing meanwhile
        await one.silent()
        await one.accepted("delta", task, text=" of it")
        await one.accepted("complete", task)
    assert (await here.client.answer(sid))["output"] == "all of it"
    starts = [x for x in await here.facts(f"session.{sid}.>") if isinstance(x, e.TurnStarted)]
    assert len(starts) == 1


async def test_a_socket_that_stays_away_frees_its_task_for_another(here: Place) -> None:
    async with line(here) as one:
        sid = await here.open()
        await one.task()
    async with line(here, "w2") as two:
        task = await two.task()
        assert (task["session_id"], task["attempt"]) == (sid, 2)
        await two.accepted("complete", task, output="done")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"worker": "No Name"}, "invalid_request"),
        ({"model_name": "gpt"}, "unknown_model"),
        ({"slots": 0}, "invalid_request"),
    ],
)
async def test_a_bad_filter_is_told_before_the_socket_closes(
    here: Place, query: dict[str, Any], code: str
) -> None:
    async with line(here, **query) as one:
        await one.refused(code)
        with pytest.raises(ConnectionClosed) as closed:
            await one.hear("nothing")
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, code)


async def test_who_leaves_by_another_way_is_not_brought_back_by_its_socket(here: Place) -> None:
    async with line(here) as one:

        async def there() -> bool:
            return "w1" in await here.gpus()

        await here.until(there, "the worker")
        await here.client.http.delete("/worker/w1")
        with pytest.raises(ConnectionClosed):
            await one.hear("nothing")
        assert not await there()
