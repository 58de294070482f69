"""Others who look: a plain NATS client, a second API, the openai client, Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats
import openai
import pytest

from helix_es.jetstream.server import free_port
from helix_es.processes import Child, Supervisor
from tests.e2e.shop import HELIX, Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def test_a_plain_nats_client_sees_readable_json_while_a_chat_runs(client: Client, shop: Shop) -> None:
    plain = await nats.connect(shop.nats_url)
    seen: dict[str, dict[str, object]] = {}

    async def note(message: object) -> None:
        seen[message.subject] = json.loads(message.data)  # type: ignore[attr-defined]

    for subject in ("session.>", "task.create.text.smollm2", "gpu.*.heartbeat", "delta.>"):
        await plain.subscribe(subject, cb=note)
    await plain.flush()
    session = await client.open("Say hi.", params={"max_tokens": 8})
    sid = session["session_id"]
    await client.answer(sid)
    async with asyncio.timeout(5):
        while not any(subject.endswith(".heartbeat") for subject in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await plain.close()
    assert seen[f"session.{sid}.turn.queued.create.text.smollm2"]["prompt"] == "Say hi."
    assert seen["task.create.text.smollm2"]["session"] == sid
    assert any(re.fullmatch(rf"session\.{sid}\.turn\.completed\..+", subject) for subject in seen)
    assert any(subject == f"delta.{sid}.1.1" for subject in seen)


async def test_two_api_processes_give_the_same_answers(client: Client, shop: Shop, tmp_path: Path) -> None:
    port = free_port()
    processes = Supervisor(tmp_path)
    await processes.start(
        Child("api-2", [*HELIX, "api", "--nats", shop.nats_url, "--port", str(port)]),
    )
    try:
        async with Client(f"http://127.0.0.1:{port}") as other:
            async with asyncio.timeout(30):
                while True:
                    try:
                        if (await other.http.get("/gpus")).status_code == 200:
                            break
                    except httpx.HTTPError:
                        await asyncio.sleep(0.1)
            session = await client.open("Say hi.", params={"max_tokens": 8})
            sid = session["session_id"]
            await other.answer(sid)
            assert await other.session(sid) == await client.session(sid)
            turn = await other.say(sid, "Again.", params={"max_tokens": 4})
            assert turn["gpu"] is not None, "continued by an API that did not open it"
            await client.answer(sid, 2)
            for path in ("/queue", "/models", "/fleet", "/sessions?limit=3"):
                assert (await other.http.get(path)).json() == (await client.http.get(path)).json(), path
    finally:
        await processes.stop()


async def test_metrics_and_health_are_there(client: Client, shop: Shop) -> None:
    text = (await client.http.get(f"{shop.url}/metrics")).text
    assert 'helix_gpus{state="ready"} 1.0' in text
    assert (await client.http.get(f"{shop.url}/readyz")).json()["status"] == "ready"
    assert (await client.http.get(f"{shop.url}/livez")).status_code == 200
    assert "/api/v1/sessions" in (await client.http.get(f"{shop.url}/schema/openapi.json")).json()["paths"]
    assert "<title>" in (await client.http.get(f"{shop.url}/")).text


@pytest.fixture
def ai(shop: Shop) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shop.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_the_openai_client_lists_models_and_gets_an_answer_with_usage(ai: openai.OpenAI) -> None:
    assert "smollm2" in [model.id for model in ai.models.list()]
    assert ai.models.retrieve("smollm2").id == "smollm2"
    answer = ai.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Say hi."}], max_tokens=8
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_openai_client_streams_and_continues_a_session_on_its_gpu(ai: openai.OpenAI, shop: Shop) -> None:
    messages: list[dict[str, str]] = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "My cat is called Tom. Say hello to him."},
    ]

    def ask() -> tuple[str, int, int]:
        chunks = list(
            ai.chat.completions.create(
                model="smollm2",
                messages=messages,  # type: ignore[arg-type]
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers={"x-session-id": "tom-and-me"},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        return text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0

    first, prompt_tokens, cached = ask()
    assert first
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "What is his name?"}]
    second, _, cached = ask()
    assert "Tom" in second
    assert cached >= prompt_tokens, "the conversation was still in memory"
    messages[1]["content"] = "My cat is called Bob. Say hello to him."
    third, _, _ = ask()
    assert "Bob" in third, "an edited history counts, not the one in the log"


def test_openai_errors_have_openais_shape(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="gpt-99", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    for wrong in (
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "n": 3},
        {"messages": [{"role": "user", "content": "x"}], "temperature": 77},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "word " * 9000}]},
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            ai.chat.completions.create(model="smollm2", **wrong)  # type: ignore[call-overload]
        assert bad.value.body is not None
    with httpx.Client(base_url=str(ai.base_url)) as raw:
        answer = raw.post("/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
        assert answer.json()["error"]["code"] == "invalid_json"


def test_a_client_that_goes_away_stops_the_computing_and_frees_the_slot(
    ai: openai.OpenAI, shop: Shop
) -> None:
    stream = ai.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=900,
        stream=True,
    )
    ids = [next(stream).id for _ in range(4)]
    stream.close()
    sid = ids[0].removeprefix("chatcmpl-").rpartition("-")[0]
    shop.until(lambda: _session(shop, sid)["state"] == "closed", "closed session", 10)
    assert _session(shop, sid)["turns"][0]["state"] == "cancelled"


def _session(shop: Shop, sid: str) -> dict[str, object]:
    return dict(httpx.get(f"{shop.url}/api/v1/sessions/{sid}").json())
