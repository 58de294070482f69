"""What the log knows: a conversation on the real model, asked, shown again, decided again, exported."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helix_es.core.events import Recorded
from helix_es.core.subjects import session_filter
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from tests.e2e.shop import HELIX, Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def helix(*words: str) -> str:
    """Return what the command prints; it must succeed."""
    done = await tried(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def tried(*words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [*HELIX, *words], capture_output=True, text=True, timeout=90, check=False
    )


async def asked(shop: Shop, sql: str) -> list[Any]:
    """Return the rows; the tables come a little after the shop is ready."""
    async with asyncio.timeout(60):
        while (done := await tried("sql", "--url", shop.url, "-o", "json", sql)).returncode:
            assert "analytics_unavailable" in done.stderr
    return list(json.loads(done.stdout)["rows"])


async def talked(client: Client) -> str:
    """Return a session of two turns on its GPU."""
    sid = (await client.open("Say hi.", params={"max_tokens": 6}))["session_id"]
    await client.answer(sid)
    await client.say(sid, "And again.")
    await client.answer(sid, turn=2)
    return str(sid)


async def test_every_decision_of_the_running_shop_is_made_again(shop: Shop, client: Client) -> None:
    await talked(client)
    found = json.loads(await helix("replay", "--verify", "--nats", shop.nats_url, "--json"))
    assert found["ok"]
    assert found["reproduced"]["turn.admitted"] >= 1
    assert found["reproduced"]["gpu.assigned"] >= 1
    assert found["differing"] == found["other_rules"] == 0


async def test_the_tables_say_what_the_api_says(shop: Shop, client: Client) -> None:
    sid = await talked(client)
    session = await client.session(sid)
    sql = f"SELECT turn, how, state, gpu, completion_tokens FROM turns WHERE session = '{sid}' ORDER BY turn"
    async with asyncio.timeout(30):
        while True:
            rows = await asked(shop, sql)
            if len(rows) == 2 and all(row[2] == "completed" for row in rows):
                break
    assert [[t["turn"], t["state"], t["gpu"], t["usage"]["completion_tokens"]] for t in session["turns"]] == [
        [turn, state, gpu, tokens] for turn, _, state, gpu, tokens in rows
    ]
    assert rows[0][1] == "queued"
    assert rows[1][1] == "continued"


async def test_a_conversation_can_be_looked_at_afterwards(shop: Shop, client: Client) -> None:
    sid = await talked(client)
    told = json.loads(await helix("why", sid, "--nats", shop.nats_url, "--json"))
    assert [turn["turn"] for turn in told["turns"]] == [1, 2]
    seq = max(record.seq for record in await shop_log(shop, sid))
    then = msgspec.json.decode(
        await helix("replay", "--at", str(seq), "--nats", shop.nats_url, "--json"), type=dict
    )
    assert then["seq"] == seq
    assert sid in json.dumps(then)
    before = await helix("replay", "--at", "2", "--nats", shop.nats_url, "--json")
    assert sid not in before


async def shop_log(shop: Shop, sid: str) -> list[Recorded]:
    """Return the session's records."""
    connection = await connect(NatsSettings(url=shop.nats_url))
    try:
        return await JetStreamLog(connection).history(session_filter(sid))
    finally:
        await connection.close()


async def test_an_export_is_a_log_of_its_own(shop: Shop, client: Client, tmp_path: Path) -> None:
    await talked(client)
    folder = tmp_path / "export"
    await helix("export", str(folder), "--nats", shop.nats_url, "--data-dir", str(shop.data))
    found = json.loads(await helix("replay", "--log", str(folder), "--verify", "--json"))
    assert found["ok"]
    assert found["reproduced"]["turn.admitted"] >= 1


async def test_other_rules_follow_the_live_log_and_append_nothing(
    shop: Shop, client: Client, tmp_path: Path
) -> None:
    rules = tmp_path / "other.toml"
    rules.write_text('[coefficients]\n"cpu/smollm2" = 2\n')
    following = asyncio.create_task(
        helix("shadow", "--config", str(rules), "--for", "6", "--nats", shop.nats_url, "--json")
    )
    async with asyncio.timeout(20):
        while not following.done():
            await talked(client)
    found = json.loads(await following)
    admitted = found["decisions"]["turn.admitted"]
    assert admitted["live"] == admitted["same"] + admitted["sooner"] + admitted["only_live"] > 0
    assert await asked(shop, "SELECT count(*) FROM policies") == [[1]]
