"""The real shop: a broker, a scheduler and simulated GPUs, each a process of its own; and the log that they leave."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec

from helix_es.core.codec import encode
from helix_es.core.errors import Unavailable
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.replica import Replica
from tests.bench.shop_floor import process
from tests.conftest import NatsServer
from tests.fidelity.schedule import (
    FIRST_TOKEN_MS,
    GPUS,
    IDLE_AFTER_S,
    KIND,
    LOAD_MS,
    MODEL,
    SLOTS,
    TOKENS_PER_S,
    Visit,
)
from tests.fidelity.visitors import Visitors

READY_S = 60.0


def played(visits: list[Visit], folder: Path) -> list[str]:
    """Let `visits` happen, write the log to `folder`/log.jsonl, and return the turns that were never answered."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "helix.toml"
    config.write_text(f"[sessions]\nidle_after_s = {IDLE_AFTER_S}\n", encoding="utf-8")
    out = folder / "out.log"
    with tempfile.TemporaryDirectory() as data:
        server = NatsServer(Path(data))
        server.start()
        try:
            with (
                process("scheduler", "--config", str(config), server=server, output=out),
                process(*_gpus(), server=server, output=out),
            ):
                return asyncio.run(_play(server, visits, folder / "log.jsonl"))
        finally:
            server.close()


def _gpus() -> list[str]:
    kind = [
        "--model",
        MODEL,
        "--kind",
        KIND,
        "--count",
        str(GPUS),
        "--slots",
        str(SLOTS),
        "--gpu-prefix",
        "sim",
    ]
    pace = ["--first-token-ms", str(FIRST_TOKEN_MS), "--tokens-per-s", str(TOKENS_PER_S)]
    return ["runner", "simulated", *kind, *pace, "--load-ms", str(LOAD_MS)]


async def _play(server: NatsServer, visits: list[Visit], path: Path) -> list[str]:
    connection = await connect(NatsSettings(url=server.url))
    log = JetStreamLog(connection)
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    await log.last_seq()
                    break
                except Unavailable:  # the scheduler has not made it yet
                    await asyncio.sleep(0.05)
        replica = Replica(log, from_snapshot=False)
        following = asyncio.create_task(replica.run())
        try:
            async with asyncio.timeout(READY_S):
                while sum(gpu.state == "ready" for gpu in replica.state.gpus.values()) < GPUS:
                    await replica.changed().wait()
            visitors = Visitors(log, replica)
            await visitors.come(visits)
        finally:
            following.cancel()
        await write(log, path)
        return visitors.unheard
    finally:
        await connection.close()


async def write(log: JetStreamLog, path: Path) -> None:
    """Write the whole log as lines of JSON, as `JsonLines` reads it."""
    last = await log.last_seq()
    with path.open("wb") as file:
        async for batch in log.follow(0):
            for record in batch.records:
                payload = msgspec.Raw(b"null" if record.event is None else encode(record.event))
                line = {
                    "seq": record.seq,
                    "at_ms": record.at_ms,
                    "subject": record.subject,
                    "payload": payload,
                }
                file.write(msgspec.json.encode(line) + b"\n")
            if batch.records and batch.records[-1].seq >= last:
                return
