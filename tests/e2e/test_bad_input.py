"""Whatever is wrong is told with its code, and leaves no trace in the log."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.shop import Client

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

GOOD = {"model": "smollm2", "prompt": "Say hi.", "params": {"max_tokens": 2}}
TUNE: dict[str, Any] = {"model": "smollm2", "mode": "finetune", "name": "a", "dataset": "nothing"}
IMAGE: dict[str, Any] = {"model": "scenes", "type": "image", "prompt": "a house"}
BAD: list[tuple[str, dict[str, Any] | bytes, int, str]] = [
    ("unknown model", {**GOOD, "model": "gpt-99"}, 422, "unknown_model"),
    ("empty prompt", {**GOOD, "prompt": ""}, 422, "empty_prompt"),
    ("blank prompt", {**GOOD, "prompt": " \n\t"}, 422, "empty_prompt"),
    ("no prompt", {"model": "smollm2"}, 400, "invalid_request"),
    ("prompt of another kind", {**GOOD, "prompt": 7}, 400, "invalid_request"),
    ("unknown type", {**GOOD, "type": "smell"}, 400, "invalid_request"),
    ("type that the model does not make", {**GOOD, "type": "image"}, 422, "wrong_type"),
    ("unknown mode", {**GOOD, "mode": "destroy"}, 400, "invalid_request"),
    ("a dataset without a fine-tune", {**GOOD, "dataset": "d"}, 400, "invalid_request"),
    ("a fine-tune with a prompt", {**TUNE, "prompt": "x"}, 400, "invalid_request"),
    ("a fine-tune without a name", {**TUNE, "name": None}, 400, "invalid_request"),
    ("a fine-tune with a name that is none", {**TUNE, "name": "My Model"}, 400, "invalid_request"),
    ("a fine-tune without a dataset", {**TUNE, "dataset": None}, 400, "invalid_request"),
    ("a dataset that is not there", TUNE, 404, "file_not_found"),
    ("a fine-tune of an image model", {**TUNE, "model": "scenes", "type": "image"}, 422, "mode_unavailable"),
    ("a learning rate beyond reason", {**TUNE, "params": {"learning_rate": 9}}, 422, "invalid_params"),
    ("a rank beyond reason", {**TUNE, "params": {"lora_rank": 100_000}}, 422, "invalid_params"),
    ("a fine-tune with text parameters", {**TUNE, "params": {"max_tokens": 5}}, 422, "invalid_params"),
    ("a picture of a text model", {**IMAGE, "model": "smollm2"}, 422, "wrong_type"),
    ("a picture with a system prompt", {**IMAGE, "system": "x"}, 400, "invalid_request"),
    ("a picture with an adapter", {**IMAGE, "adapter": "x"}, 400, "invalid_request"),
    ("a giant picture", {**IMAGE, "params": {"width": 4096, "height": 4096}}, 422, "invalid_params"),
    ("a picture too wide for its model", {**IMAGE, "params": {"width": 136}}, 422, "invalid_params"),
    ("an odd size", {**IMAGE, "params": {"width": 65}}, 422, "invalid_params"),
    ("endless steps", {**IMAGE, "params": {"steps": 1_000_000}}, 422, "invalid_params"),
    ("no steps", {**IMAGE, "params": {"steps": 0}}, 422, "invalid_params"),
    ("a thousand pictures", {**IMAGE, "params": {"count": 1000}}, 422, "invalid_params"),
    ("not a number", {**IMAGE, "params": {"guidance": "NaN"}}, 422, "invalid_params"),
    ("a picture with text parameters", {**IMAGE, "params": {"max_tokens": 5}}, 422, "invalid_params"),
    ("unknown adapter", {**GOOD, "adapter": "mine"}, 422, "unknown_adapter"),
    ("unknown field", {**GOOD, "promt": "x"}, 400, "invalid_request"),
    ("unknown parameter", {**GOOD, "params": {"heat": 1}}, 422, "invalid_params"),
    ("parameter of another kind", {**GOOD, "params": {"max_tokens": "many"}}, 422, "invalid_params"),
    ("parameter out of range", {**GOOD, "params": {"temperature": 99}}, 422, "invalid_params"),
    ("no tokens", {**GOOD, "params": {"max_tokens": 0}}, 422, "invalid_params"),
    ("priority out of range", {**GOOD, "priority": 1000}, 400, "invalid_request"),
    ("broken JSON", b'{"model": "smollm2", ', 400, "invalid_json"),
    ("not JSON at all", b"\x00\xff\xfe", 400, "invalid_json"),
    ("a list", b"[]", 400, "invalid_request"),
    ("nothing", b"", 400, "invalid_request"),
    ("10 MB prompt", {**GOOD, "prompt": "x" * 10_000_000}, 413, "body_too_large"),
    ("longer than the context", {**GOOD, "prompt": "word " * 9000}, 422, "prompt_too_long"),
    ("more characters than allowed", {**GOOD, "prompt": "x" * 500_000}, 422, "prompt_too_long"),
]


async def seq(client: Client) -> int:
    root = str(client.http.base_url).removesuffix("/api/v1/")
    return int((await client.http.get(f"{root}/readyz")).json()["seq"])


@pytest.mark.parametrize(("what", "body", "status", "code"), BAD, ids=[row[0] for row in BAD])
async def test_a_bad_session_is_refused(
    client: Client, what: str, body: dict[str, Any] | bytes, status: int, code: str
) -> None:
    before = await seq(client)
    headers = {"Content-Type": "application/json"}
    if isinstance(body, bytes):
        answer = await client.http.post("/sessions", content=body, headers=headers)
    else:
        answer = await client.http.post("/sessions", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert await seq(client) == before


@pytest.mark.parametrize("sid", ["nobody", "NOT.A.TOKEN", "a b", "*", ">", "x" * 300, "%2e%2e"])
async def test_an_unknown_session_is_told_so(client: Client, sid: str) -> None:
    before = await seq(client)
    for method, path in (
        ("GET", f"/sessions/{sid}"),
        ("DELETE", f"/sessions/{sid}"),
        ("GET", f"/sessions/{sid}/events"),
        ("POST", f"/sessions/{sid}/turns/1/cancel"),
    ):
        answer = await client.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found"), (method, path)
    answer = await client.http.post(f"/sessions/{sid}/turns", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    assert await seq(client) == before


async def test_a_turn_is_refused_while_one_is_open_and_when_the_session_is_closed(client: Client) -> None:
    session = await client.open("Write a long story.", params={"max_tokens": 200})
    sid = session["session_id"]
    async for event in client.events(sid, 1):
        if event.name == "delta":
            break
    before = await seq(client)
    answer = await client.http.post(f"/sessions/{sid}/turns", json={"prompt": "And?"})
    assert (answer.status_code, answer.json()["code"]) == (409, "turn_open")
    assert await seq(client) == before
    await client.http.delete(f"/sessions/{sid}")
    async for _ in client.events(sid):
        pass
    answer = await client.http.post(f"/sessions/{sid}/turns", json={"prompt": "And?"})
    assert (answer.status_code, answer.json()["code"]) == (409, "session_closed")


async def test_a_wrong_last_event_id_and_a_wrong_page_are_refused(client: Client) -> None:
    session = await client.open("Say hi.", params={"max_tokens": 2})
    sid = session["session_id"]
    await client.answer(sid)
    answer = await client.http.get(f"/sessions/{sid}/events", headers={"Last-Event-ID": "soon"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    answer = await client.http.get(f"/sessions/{sid}/events", params={"turn": 5})
    assert (answer.status_code, answer.json()["code"]) == (404, "turn_not_found")
    for params in ({"limit": 0}, {"limit": "many"}, {"state": "asleep"}):
        answer = await client.http.get("/sessions", params=params)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), params
    for path in ("/nowhere", "/../nowhere"):
        answer = await client.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await client.http.put("/sessions", json={})
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
