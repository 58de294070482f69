"""Ten come at once to a GPU with two seats: nobody is lost, nobody jumps the queue, everybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from helix_es.core import events as e
from tests.e2e.shop import ENDS, Client, Shop, facts

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

CONFIG = """
[models.smollm2]
context_tokens = 1000
[coefficients]
"cpu/smollm2" = 2
[sessions]
idle_after_s = 0.5
[auth.keys]
"2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90" = "ann"
"81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9" = "bob"
"""  # SHA-256 of "alice" and of "bob"


@pytest.fixture(scope="module")
def full_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    monkey = pytest.MonkeyPatch()
    monkey.setenv("HELIX_API_KEY", "alice")
    running = Shop(tmp_path_factory.mktemp("full"), config=CONFIG)
    running.ready = lambda: True  # type: ignore[method-assign]  # it asks without a key
    try:
        running.start()
        running.until(lambda: "ready:" in (running.folder / "up.log").read_text(), "ready runner")
        yield running
    finally:
        monkey.undo()
        running.stop()


@pytest.fixture
async def ann(full_shop: Shop) -> AsyncIterator[Client]:
    async with Client(full_shop.url) as made:
        made.http.headers["Authorization"] = "Bearer alice"
        yield made


async def test_ten_at_once_are_served_two_by_two_in_order(full_shop: Shop, ann: Client) -> None:
    opened = []
    for n in range(10):
        opened.append(await ann.open(f"Say the number {n}.", params={"max_tokens": 12}))
    waits: dict[str, list[tuple[int, float | None]]] = {}

    async def wait(sid: str) -> str:
        waits[sid] = []
        async for event in ann.follow(sid, 1):
            if event.name == "queue":
                waits[sid].append((event.data["position"], event.data["wait_s"]))
            if event.name in ENDS:
                return str(event.data["turn"]["state"])
        raise AssertionError

    sids = [session["session_id"] for session in opened]
    states = await asyncio.gather(*(wait(sid) for sid in sids))
    assert states == ["completed"] * 10

    records = await facts(full_shop.nats_url, ">")
    bound: set[str] = set()
    most = 0
    admitted: list[str] = []
    for record in records:
        match record.event:
            case e.TurnAdmitted(session=sid):
                admitted.append(sid)
            case e.TurnStarted(session=sid):
                bound.add(sid)
                most = max(most, len(bound))
            case e.SessionReleased(session=sid):
                bound.discard(sid)
            case _:
                pass
    assert most == 2
    assert [sid for sid in admitted if sid in sids] == sids, "first come, first served"
    for session in opened[2:]:
        told = [(session["queue"]["position"], session["queue"]["wait_s"])] if session["queue"] else []
        told += waits[session["session_id"]]
        assert told, "everybody who waited was told"
        places = [position for position, _ in told]
        assert places == sorted(places, reverse=True), "a place only falls"
        assert all(wait_s is not None and wait_s >= 0 for _, wait_s in told)
    last = [position for position, _ in waits[sids[-1]]]
    assert len(set(last)) >= 3, f"the last one saw the queue move: {last}"


async def test_one_owner_with_many_does_not_delay_another_with_one(full_shop: Shop, ann: Client) -> None:
    many = [(await ann.open("Say hi.", params={"max_tokens": 8}))["session_id"] for _ in range(6)]
    async with Client(full_shop.url) as bob:
        bob.http.headers["Authorization"] = "Bearer bob"
        one = (await bob.open("Say hi.", params={"max_tokens": 8}))["session_id"]
        foreign = await bob.http.get(f"/sessions/{many[0]}")
        assert (foreign.status_code, foreign.json()["code"]) == (404, "session_not_found")
        await asyncio.gather(bob.answer(one), *(ann.answer(sid) for sid in many))
    order = [
        r.event.session
        for r in await facts(full_shop.nats_url, "session.*.turn.admitted.>")
        if isinstance(r.event, e.TurnAdmitted)
    ]
    assert order.index(one) < order.index(many[3]), "fair share, not first come"


async def test_a_turn_that_waits_can_be_cancelled_and_a_session_that_waits_closed(ann: Client) -> None:
    sids = [(await ann.open("Say hi.", params={"max_tokens": 40}))["session_id"] for _ in range(5)]
    await ann.http.post(f"/sessions/{sids[4]}/turns/1/cancel")
    await ann.http.delete(f"/sessions/{sids[3]}")
    assert (await ann.answer(sids[4]))["state"] == "cancelled"
    assert (await ann.session(sids[4]))["state"] == "released"
    assert (await ann.session(sids[3]))["state"] == "closed"
    assert [t["state"] for t in await asyncio.gather(*(ann.answer(sid) for sid in sids[:3]))] == [
        "completed"
    ] * 3


async def test_without_a_key_nobody_gets_in(full_shop: Shop) -> None:
    async with Client(full_shop.url) as stranger:
        for path in ("/sessions", "/gpus", "/queue", "/models", "/fleet", "/sessions/x"):
            answer = await stranger.http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
        stranger.http.headers["Authorization"] = "Bearer wrong"
        answer = await stranger.http.post("/sessions", json={"model": "smollm2", "prompt": "x"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        root = full_shop.url
        assert (await stranger.http.get(f"{root}/v1/models")).status_code == 401
        assert (await stranger.http.get(f"{root}/livez")).status_code == 200


async def test_a_conversation_that_outgrows_the_context_is_told_so_and_stays_usable(ann: Client) -> None:
    session = await ann.open("Tell me about rivers. " * 100, params={"max_tokens": 8})
    sid = session["session_id"]
    assert (await ann.answer(sid))["output"]
    await ann.say(sid, "Tell me about lakes. " * 120, params={"max_tokens": 4})
    turn = await ann.answer(sid, 2)
    assert (turn["state"], turn["error"]["code"]) == ("failed", "prompt_too_long")
    await ann.say(sid, "And now briefly?", params={"max_tokens": 4})
    assert (await ann.answer(sid, 3))["state"] == "completed", (
        "the failed turn is no part of the conversation"
    )
