"""Fine-tunes and the models that they make; and kill -9 in the middle of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from helix_es.core import events as e
from tests.e2e.shop import Client, Shop, ended, facts, helix, runner_of, until_fact

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(400)]

DATASET = next((Path(__file__).parents[2] / "examples").glob("*.jsonl"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def school(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """Two batch runners, and one that chats with what they made."""
    running = Shop(tmp_path_factory.mktemp("school"), runners="batch:smollm2*2,text:smollm2")
    try:
        await asyncio.to_thread(running.start)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


def curve(records: list[e.Recorded]) -> list[tuple[int, int, float]]:
    """(attempt, step, loss) of every step that the log tells of."""
    return [
        (record.event.attempt, int(step), float(loss))
        for record in records
        if isinstance(record.event, e.TurnProgressed)
        for step, loss in record.event.detail.get("losses", [])
    ]


async def upload(client: Client) -> str:
    answer = await client.http.post("/files", files={"file": (DATASET.name, DATASET.read_bytes())})
    return str(answer.raise_for_status().json()["file_id"])


async def tune(client: Client, name: str, **params: Any) -> str:
    body = {"model": "smollm2", "mode": "finetune", "name": name, "dataset": await upload(client)}
    answer = await client.http.post("/sessions", json={**body, "params": params})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["session_id"])


QUICK = {"max_steps": 16, "batch_size": 1, "sequence_tokens": 48, "checkpoint_steps": 4, "held_out": 0.1}


async def test_a_killed_fine_tune_goes_on_from_its_last_checkpoint_on_another_runner(school: Shop) -> None:
    async with Client(school.url) as client:
        whole = await tune(client, "whole", **QUICK)
        assert (await ended(client, whole))["state"] == "completed"
        sid = await tune(client, "killed", **QUICK)

        def checkpointed(records: list[e.Recorded]) -> bool:
            return any(isinstance(r.event, e.TurnProgressed) and r.event.checkpoint for r in records)

        await until_fact(school, f"session.{sid}.>", checkpointed)
        school.kill(await runner_of(client, sid))
        turn = await ended(client, sid)
        assert (turn["state"], turn["attempt"]) == ("completed", 2), turn
        records = await facts(school.nats_url, f"session.{sid}.>")
        gpus = [r.event.gpu for r in records if isinstance(r.event, e.TurnStarted)]
        assert len(set(gpus)) == 2
        second = [(step, loss) for attempt, step, loss in curve(records) if attempt == 2]
        undisturbed = {
            step: loss for _, step, loss in curve(await facts(school.nats_url, f"session.{whole}.>"))
        }
        begun = second[0][0]
        assert begun > 1, "not from the beginning"
        assert (begun - 1) % QUICK["checkpoint_steps"] == 0
        assert [step for step, _ in second] == list(range(begun, QUICK["max_steps"] + 1)), "no gap"
        assert [round(loss, 4) for _, loss in second] == [
            round(undisturbed[step], 4) for step, _ in second
        ], "the curve of a training that was not disturbed"
        left = (await client.http.get("/files", params={"purpose": "checkpoint"})).json()["data"]
        assert sid not in [file["session_id"] for file in left] or len(left) <= 2
    await asyncio.to_thread(school.until, school.ready, "ready runners")


async def test_a_cancelled_fine_tune_keeps_its_last_checkpoint(school: Shop) -> None:
    async with Client(school.url) as client:
        sid = await tune(client, "stopped", **{**QUICK, "max_steps": 500})
        await until_fact(school, f"session.{sid}.turn.progressed.*", bool)
        assert (await client.http.post(f"/sessions/{sid}/turns/1/cancel")).status_code == 202
        turn = await ended(client, sid)
        assert turn["state"] == "cancelled"
        names = [(await client.http.get(f"/files/{file}")).json()["name"] for file in turn["files"]]
        assert names == ["adapter_model.safetensors", "adapter_config.json"]
        records = await facts(school.nats_url, f"session.{sid}.>")
        kept = [f for r in records if isinstance(r.event, e.TurnProgressed) for f in r.event.checkpoint][-1]
        assert (await client.http.get(f"/files/{kept}")).json()["purpose"] == "checkpoint"
        answer = await client.http.post(
            "/sessions", json={"model": "smollm2", "adapter": "stopped", "prompt": "x"}
        )
        assert answer.json()["code"] == "unknown_adapter", "what was stopped is no model"


async def test_a_finished_fine_tune_is_a_model_and_chats_survive_its_runner(school: Shop) -> None:
    question = "What is this about?"
    async with Client(school.url) as client:
        sid = await tune(client, "short", **{**QUICK, "learning_rate": 0.01})
        assert (await ended(client, sid))["state"] == "completed"
        assert "short" in (await helix(school, "adapters")).stdout
        plain = await helix(school, "chat", "--max-tokens", "12", question)
        tuned = await helix(school, "chat", "--adapter", "short", "--max-tokens", "12", question)
        assert tuned.stdout != plain.stdout
        cards = [each["id"] for each in (await client.http.get(f"{school.url}/v1/models")).json()["data"]]
        assert "smollm2:short" in cards
        body = {
            "model": "smollm2:short",
            "max_tokens": 12,
            "messages": [{"role": "user", "content": question}],
        }
        answer = (await client.http.post(f"{school.url}/v1/chat/completions", json=body)).json()
        assert answer["choices"][0]["message"]["content"].strip() == tuned.stdout.strip()
        opened = await client.open(question, adapter="short", params={"max_tokens": 120})
        async for event in client.events(opened["session_id"], 1):
            if event.name == "delta":
                break
        school.kill(await runner_of(client, opened["session_id"]))
        again = await client.answer(opened["session_id"])
        assert (again["state"], again["attempt"]) == ("completed", 2)
        assert again["output"].startswith(tuned.stdout.strip()[:20])
    await asyncio.to_thread(school.until, school.ready, "ready runners")


def test_the_dataset_of_the_examples_is_what_its_name_says() -> None:
    rows = [json.loads(line) for line in DATASET.read_text().splitlines() if line]
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
