"""What a reviewer broke once, and must not break again."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket

import httpx
import pytest

from helix_es.core import events as e
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from tests.e2e.shop import Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

FEW = {"max_tokens": 3}


async def test_repeating_a_request_at_the_wrong_moment_strands_nothing(client: Client) -> None:
    async def once(n: int) -> str:
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        sid = (await client.open("Say hi.", headers, params=FEW))["session_id"]
        await asyncio.sleep(n % 9 / 1000)  # the moments between its facts
        again = await client.open("Say hi.", headers, params=FEW)
        assert again["session_id"] == sid
        state = (await client.answer(sid, seconds=40))["state"]
        await client.http.delete(f"/sessions/{sid}")
        return str(state)

    for start in range(0, 48, 8):
        assert set(await asyncio.gather(*(once(start + n) for n in range(8)))) == {"completed"}


async def test_a_closed_session_is_never_seated_again(client: Client, shop: Shop) -> None:
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    sid = (await client.open("Say hi.", headers, params=FEW))["session_id"]
    await client.answer(sid)
    await client.http.delete(f"/sessions/{sid}")
    assert (await client.open("Say hi.", headers, params=FEW))["state"] == "closed"

    bare = "created-only"  # as after the death of an API between the two facts
    connection = await connect(NatsSettings(url=shop.nats_url))
    created = e.SessionCreated(
        session=e.SessionId(bare), owner="local", mode="create", type="text", model="smollm2"
    )
    await JetStreamLog(connection).append(created, expected_seq=0, key=bare)
    await connection.close()
    assert (await client.http.delete(f"/sessions/{bare}")).status_code == 204
    assert (await client.session(bare))["state"] == "closed"
    floor = (await client.http.get("/gpus")).json()["data"]
    assert not {sid, bare} & {name for gpu in floor for name in gpu["sessions"]}


async def test_the_stream_of_one_turn_has_that_turn_only(client: Client) -> None:
    sid = (await client.open("Say hi.", params=FEW))["session_id"]
    await client.answer(sid)
    for turn in (2, 3):
        await client.say(sid, "Again.", params=FEW)
        await client.answer(sid, turn)
    for wanted in (1, 2, 3):
        turns = set()
        async for event in client.events(sid, wanted):
            turns.add(event.data["turn"] if event.name == "delta" else event.data["turn"]["turn"])
        assert turns == {wanted}


async def test_a_cursor_of_another_log_begins_at_the_beginning(client: Client) -> None:
    sid = (await client.open("Say hi.", params=FEW))["session_id"]
    await client.answer(sid)
    names = [event.name async for event in client.events(sid, 1, last="999999999999.1.0")]
    assert names[-1] == "turn.completed"


async def test_a_key_of_a_turn_belongs_to_its_body(client: Client) -> None:
    sid = (await client.open("Say hi.", params=FEW))["session_id"]
    await client.answer(sid)
    headers = {"Idempotency-Key": "one"}
    path = f"/sessions/{sid}/turns"
    first = await client.http.post(path, json={"prompt": "alpha", "params": FEW}, headers=headers)
    await client.answer(sid, 2)
    again = await client.http.post(path, json={"prompt": "alpha", "params": FEW}, headers=headers)
    other = await client.http.post(path, json={"prompt": "beta", "params": FEW}, headers=headers)
    assert (first.status_code, again.json()["turn"]) == (201, 2)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    "body",
    [b'{"model":"smollm2","prompt":"\xff"}', b"[" * 100_000, b'{"params":' * 3000],
    ids=["not UTF-8", "deep list", "deep params"],
)
async def test_bytes_that_no_decoder_likes_are_bad_requests(client: Client, body: bytes) -> None:
    answer = await client.http.post("/sessions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("user", ["emoji😀", "line\nbreak", "a\r\nX-Evil: 1", ""])
async def test_any_user_is_a_session_key(shop: Shop, user: str) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "user": user,
        "max_tokens": 3,
    }
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{shop.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers


async def test_hanging_up_at_the_last_word_frees_the_slot(client: Client, shop: Shop) -> None:
    def ask() -> str:
        body = json.dumps(
            {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": True,
                "max_tokens": 3,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(shop.url.rpartition(":")[2])), timeout=60) as raw:
            raw.sendall(head.encode() + body)
            got = b""
            while b"[DONE]" not in got:
                got += raw.recv(4096)
        return got.split(b'"id":"chatcmpl-')[1].split(b'"')[0].decode().rpartition("-")[0]

    for _ in range(4):
        sid = await asyncio.to_thread(ask)
        assert (await client.session(sid))["state"] == "closed"
