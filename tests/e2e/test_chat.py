"""A stranger's first minutes: open, stream, continue, cancel, close, come back."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.shop import Client, Event, Shop, facts, joined, tags

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def test_a_session_is_answered_and_its_second_turn_knows_the_first(client: Client, shop: Shop) -> None:
    session = await client.open("My dog is called Bruno. Say hello to him.", params={"max_tokens": 24})
    assert session["state"] in ("queued", "active")
    sid = session["session_id"]
    first = await client.answer(sid)
    assert first["state"] == "completed"
    assert first["output"]
    assert first["usage"]["completion_tokens"] <= 24
    assert first["started_at"] <= first["first_token_at"] <= first["ended_at"]

    turn = await client.say(sid, "What is the name of my dog?", params={"max_tokens": 24})
    assert turn["turn"] == 2
    second = await client.answer(sid, 2)
    assert "Bruno" in second["output"]
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"], "the kept cache was used"
    assert second["gpu"] == first["gpu"]

    found = tags(await facts(shop.nats_url, f"session.{sid}.>"))
    assert found == [
        "session.created",
        "turn.queued",
        "turn.admitted",
        "turn.started",
        "turn.completed",
        "turn.continued",
        "turn.started",
        "turn.completed",
    ]


async def test_the_same_seed_says_the_same_and_another_does_not(client: Client) -> None:
    async def told(seed: int) -> str:
        params = {"max_tokens": 20, "temperature": 1.0, "seed": seed}
        session = await client.open("Tell me a story.", params=params)
        return str((await client.answer(session["session_id"]))["output"])

    once, again, other = await asyncio.gather(told(7), told(7), told(8))
    assert once == again
    assert once != other


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: Client) -> None:
    params = {"max_tokens": 60, "stop": ["4"]}
    session = await client.open("Count from 1 to 9, digits separated by spaces.", params=params)
    turn = await client.answer(session["session_id"])
    assert turn["finish_reason"] in ("stop", "length")
    assert "4" not in turn["output"]


async def test_a_stream_goes_on_exactly_where_it_was_left(client: Client) -> None:
    session = await client.open("Write a poem about the sea.", params={"max_tokens": 48})
    sid = session["session_id"]
    seen: list[Event] = []
    async for event in client.events(sid, 1):
        seen.append(event)
        if sum(e.name == "delta" for e in seen) == 8:
            break
    text = ""
    for event in seen:
        text = joined(text, event)
    async for event in client.follow(sid, 1, last=seen[-1].id):
        if event.name == "delta":
            assert event.data["offset"] == len(text), "neither lost nor doubled"
        text = joined(text, event)
    assert text == (await client.session(sid))["turns"][0]["output"]

    late = [event async for event in client.events(sid, 1)]
    assert "".join(e.data["text"] for e in late if e.name == "delta") == text
    assert [e.name for e in late if e.name != "delta"][-1] == "turn.completed"


async def test_a_running_turn_is_cancelled_and_the_session_goes_on(client: Client) -> None:
    session = await client.open("Write a very long story.", params={"max_tokens": 800})
    sid = session["session_id"]
    async for event in client.events(sid, 1):
        if event.name == "delta":
            break
    assert (await client.http.post(f"/sessions/{sid}/turns/1/cancel")).status_code == 202
    turn = await client.answer(sid)
    assert turn["state"] == "cancelled"
    assert turn["output"]
    assert (await client.session(sid))["state"] == "idle"
    await client.say(sid, "Say hi.", params={"max_tokens": 5})
    assert (await client.answer(sid, 2))["state"] == "completed"
    assert (await client.http.post(f"/sessions/{sid}/turns/1/cancel")).status_code == 202, "twice is harmless"
    missing = await client.http.post(f"/sessions/{sid}/turns/9/cancel")
    assert (missing.status_code, missing.json()["code"]) == (404, "turn_not_found")


async def test_closing_a_session_ends_its_running_turn_and_frees_its_slot(client: Client) -> None:
    session = await client.open("Write a very long story.", params={"max_tokens": 800})
    sid = session["session_id"]
    names: list[str] = []
    async for event in client.events(sid):
        names.append(event.name)
        if names.count("delta") == 1 and event.name == "delta":
            assert (await client.http.delete(f"/sessions/{sid}")).status_code == 204
    assert names[-1] == "session.closed"
    closed = await client.session(sid)
    assert closed["state"] == "closed"
    assert closed["turns"][0]["state"] == "cancelled"

    async def floor() -> list[str]:
        return [s for g in (await client.http.get("/gpus")).json()["data"] for s in g["sessions"]]

    async with asyncio.timeout(5):
        while sid in await floor():  # noqa: ASYNC110  # polls, with a deadline
            await asyncio.sleep(0.05)
    assert (await client.http.delete(f"/sessions/{sid}")).status_code == 204, "twice is harmless"


async def test_one_idempotency_key_makes_one_session_however_often_and_at_once(
    client: Client, shop: Shop
) -> None:
    headers = {"Idempotency-Key": "order-66"}
    made = await asyncio.gather(
        *(client.open("Say hi.", headers, params={"max_tokens": 4}) for _ in range(6))
    )
    assert len({session["session_id"] for session in made}) == 1
    sid = made[0]["session_id"]
    assert tags(await facts(shop.nats_url, f"session.{sid}.>")).count("session.created") == 1
    other = await client.http.post("/sessions", json={"model": "smollm2", "prompt": "Else."}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")

    await client.answer(sid)
    say = {"prompt": "And now?", "params": {"max_tokens": 4}}
    turns = await asyncio.gather(
        *(
            client.http.post(f"/sessions/{sid}/turns", json=say, headers={"Idempotency-Key": "second"})
            for _ in range(4)
        )
    )
    assert {(t.status_code, t.json()["turn"]) for t in turns} == {(201, 2)}


async def test_sessions_are_listed_newest_first_in_pages(client: Client) -> None:
    made = [(await client.open("Say hi.", params={"max_tokens": 2}))["session_id"] for _ in range(3)]
    page = (await client.http.get("/sessions", params={"limit": 2})).json()
    assert [s["session_id"] for s in page["data"]] == [made[2], made[1]]
    assert page["has_more"] is True
    rest = (await client.http.get("/sessions", params={"limit": 1, "after": made[1]})).json()
    assert rest["data"][0]["session_id"] == made[0]
    for sid in made:
        await client.answer(sid)
        await client.http.delete(f"/sessions/{sid}")
    closed = (await client.http.get("/sessions", params={"state": "closed", "limit": 3})).json()
    assert [s["session_id"] for s in closed["data"]] == made[::-1]
