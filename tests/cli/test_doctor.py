"""`helix doctor`: what it finds in a real broker, and what it says to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli.doctor import doctor
from helix_es.core.events import SchedulerBeat
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.streams import provision
from tests.cli.fake import Answered, FakeApi
from tests.cli.test_show import GPU, listed
from tests.conftest import NatsServer

METRICS = b"# TYPE helix_log_misfits gauge\nhelix_log_misfits 2.0\n"


@pytest.fixture
def healthy(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    monkeypatch.chdir(tmp_path)
    api.on("GET /readyz", Answered({"status": "ready"}))
    api.on("GET /api/v1/gpus", listed(GPU))
    api.on("GET /metrics", Answered(b"helix_log_misfits 0.0\n", 200, "text/plain"))
    return api


def examine(api: FakeApi, nats: str) -> tuple[Result, dict[str, Any]]:
    words = ["--url", api.url, "--nats", nats, "--json"]
    result = CliRunner().invoke(doctor, words, catch_exceptions=False)
    told = json.loads(result.stdout)
    return result, {check["check"]: check for check in told["checks"]}


def on_nats(server: NatsServer, work: Any) -> None:
    async def connected() -> None:
        connection = await connect(NatsSettings(url=server.url, name="test"))
        try:
            await asyncio.wait_for(work(connection), 20)
        finally:
            await connection.close()

    asyncio.run(connected())


async def beating(connection: Connection, *, active: bool = True) -> None:
    await provision(connection)
    await Beats(connection).publish(SchedulerBeat(scheduler="a", active=active, seq=7))
    while not await Beats(connection).last_seq():
        pass


def test_all_is_well(healthy: FakeApi, nats_server: NatsServer) -> None:
    on_nats(nats_server, beating)
    result, found = examine(healthy, nats_server.url)
    assert {name: check for name, check in found.items() if check["status"] == "fail"} == {}
    assert result.exit_code == 0
    assert found["scheduler"]["found"] == "a acts, folded to 7"
    for stream in ("LOG", "BEATS", "TASKS", "DELTAS", "OBJ_files"):
        assert found[f"stream {stream}"]["status"] == "ok"


def test_a_standby_is_no_scheduler_that_acts(healthy: FakeApi, nats_server: NatsServer) -> None:
    on_nats(nats_server, lambda connection: beating(connection, active=False))
    result, found = examine(healthy, nats_server.url)
    assert result.exit_code == 1
    assert found["scheduler"]["status"] == "fail"
    assert "helix scheduler" in found["scheduler"]["advice"]


def test_missing_and_differing_streams_are_named(healthy: FakeApi, nats_server: NatsServer) -> None:
    async def spoil(connection: Connection) -> None:
        await beating(connection)
        await connection.api("STREAM.DELETE.DELTAS")
        config = (await connection.api("STREAM.INFO.LOG"))["config"]
        await connection.api("STREAM.UPDATE.LOG", {**config, "discard": "old"})

    on_nats(nats_server, spoil)
    result, found = examine(healthy, nats_server.url)
    assert result.exit_code == 1
    assert found["stream DELTAS"]["found"] == "is not there"
    assert "discard = 'old'" in found["stream LOG"]["found"]
    assert "nats stream edit LOG" in found["stream LOG"]["advice"]
    assert found["stream TASKS"]["status"] == "ok"


def test_nothing_there_fails_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--url", "http://127.0.0.1:1", "--nats", "nats://user:secret@127.0.0.1:1"]
    result = CliRunner().invoke(doctor, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert "helix up" in result.stdout
    assert "secret" not in result.output
    assert result.stderr == ""


def test_no_gpu_and_unreadable_messages_are_found(healthy: FakeApi, nats_server: NatsServer) -> None:
    on_nats(nats_server, beating)
    healthy.on("GET /api/v1/gpus", listed())
    healthy.on("GET /metrics", Answered(METRICS, 200, "text/plain"))
    _, found = examine(healthy, nats_server.url)
    assert found["gpus"]["status"] == "fail"
    assert found["unreadable"]["status"] == "warn"
    assert found["unreadable"]["found"].startswith("2 ")


def test_the_servers_address_is_the_one_that_helix_up_wrote(
    healthy: FakeApi, nats_server: NatsServer, tmp_path: Path
) -> None:
    on_nats(nats_server, beating)
    (tmp_path / "var/helix").mkdir(parents=True)
    (tmp_path / "var/helix/nats.url").write_text(nats_server.url + "\n")
    result = CliRunner().invoke(doctor, ["--url", healthy.url], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{nats_server.url} (from var/helix/nats.url)" in result.stdout
