"""`helix doctor`: what it finds in a real broker, and what it says to do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import broker, checks
from helix_es.cli.checks import Check
from helix_es.cli.doctor import doctor
from helix_es.core.errors import LogFull
from helix_es.core.events import SchedulerBeat, SessionClosed, SessionId
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision
from tests.cli.fake import Answered, FakeApi
from tests.cli.test_show import GPU, listed
from tests.conftest import NatsServer
from tests.deploy.local_nats import Server, config_folder

MACHINE = {"nats-server", "disk", "torch", "models"}
POOL = {"pool": "default", "wanted": 1, "present": 1}
WAITING = {
    "mode": "create",
    "type": "text",
    "model": "mistral",
    "slots": 0,
    "bound": 0,
    "free": 0,
    "waiting": 1,
}
METRICS = b"# TYPE helix_log_misfits gauge\nhelix_log_misfits 2.0\n"


TABLES = {
    "object": "list",
    "data": [],
    "seq": 7,
    "as_of": "2026-11-24T12:00:00Z",
    "set_aside": 0,
    "unavailable": None,
}


@pytest.fixture
def healthy(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    monkeypatch.chdir(tmp_path)
    api.on("GET /readyz", Answered({"status": "ready"}))
    api.on("GET /api/v1/gpus", listed(GPU))
    api.on("GET /api/v1/fleet", listed(POOL))
    api.on("GET /api/v1/queue", listed())
    api.on("GET /api/v1/sql", Answered(TABLES))
    api.on("GET /metrics", Answered(b"helix_log_misfits 0.0\n", 200, "text/plain"))
    return api


def examine(api: FakeApi, nats: str, *more: str) -> tuple[Result, dict[str, Any]]:
    words = ["--url", api.url, "--nats", nats, "--json", *more]
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
    assert found["failover"]["found"] == "none in the last hour; no standby: enough with one broker"
    assert {name for name in found if found[name]["status"] == "warn"} <= MACHINE, (
        "no past trouble is made up"
    )
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


def ago(minutes: int) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def floor(api: FakeApi) -> dict[str, Check]:
    return {check.check: check for check in checks.api(api.url, None)}


def test_gpus_that_drain_are_in_order_and_those_that_load_are_told(healthy: FakeApi) -> None:
    states = ("draining", "leaving", "ready")
    healthy.on(
        "GET /api/v1/gpus", listed(*({**GPU, "gpu": f"n-{state}", "state": state} for state in states))
    )
    assert floor(healthy)["gpus"].found == "1 of 3 ready: n-ready (smollm2); 1 draining, 1 leaving"
    assert floor(healthy)["gpus"].status == "ok"
    healthy.on("GET /api/v1/gpus", listed(GPU, {**GPU, "state": "loading"}))
    assert floor(healthy)["gpus"].status == "warn"
    healthy.on("GET /api/v1/gpus", listed({**GPU, "state": "joining"}))
    assert floor(healthy)["gpus"].status == "fail"


def test_a_shop_that_scaled_to_zero_is_well(healthy: FakeApi) -> None:
    healthy.on("GET /api/v1/gpus", listed())
    burst = {"pool": "burst", "wanted": 0, "present": 0, "max": 3}
    healthy.on("GET /api/v1/fleet", listed({**POOL, "max": None}, burst))
    found = floor(healthy)["gpus"]
    assert (found.status, found.found) == ("ok", "no GPU is there; pool burst grows when somebody waits")


@pytest.mark.parametrize(
    ("wanted", "present", "minutes", "status"),
    [(3, 3, 60, "ok"), (3, 0, 1, "ok"), (3, 2, 10, "warn"), (3, 0, 10, "fail"), (1, 2, 10, "ok")],
)
def test_a_pool_that_does_not_come_is_told(
    healthy: FakeApi, wanted: int, present: int, minutes: int, status: str
) -> None:
    row = {
        "pool": "burst",
        "wanted": wanted,
        "present": present,
        "reason": "4 wait",
        "resized_at": ago(minutes),
    }
    healthy.on("GET /api/v1/fleet", listed(POOL, row))
    found = floor(healthy)["pools"]
    late = " for 10 min (4 wait)" if status != "ok" else ""
    assert (found.status, found.found) == (status, f"default 1 of 1, burst {present} of {wanted}{late}")


def test_a_model_that_somebody_waits_for_and_no_gpu_serves_is_told(healthy: FakeApi) -> None:
    line = {**WAITING, "sessions": [{"queued_at": ago(5)}]}
    healthy.on("GET /api/v1/queue", listed(line))
    found = floor(healthy)["queue"]
    assert (found.status, found.found) == ("warn", "no GPU serves create mistral (1 for up to 5 min)")
    healthy.on("GET /api/v1/queue", listed({**line, "slots": 4}))
    assert floor(healthy)["queue"].status == "ok"


def test_messages_that_are_no_facts_are_counted(healthy: FakeApi) -> None:
    assert (
        floor(healthy)["analytics"].found == "as of 2026-11-24T12:00:00Z (sequence 7), 0 messages set aside"
    )
    healthy.on("GET /api/v1/sql", Answered({**TABLES, "set_aside": 3}))
    found = floor(healthy)["analytics"]
    assert (found.status, found.advice) == ("warn", "see 'helix sql -q set-aside'")
    assert "3 messages set aside" in found.found


def test_without_tables_the_rest_is_no_worse(healthy: FakeApi) -> None:
    healthy.on("GET /api/v1/sql", Answered({**TABLES, "unavailable": "start 'helix analytics'"}))
    assert floor(healthy)["analytics"].found == "none: start 'helix analytics'"
    del healthy.answers["GET /api/v1/sql"]
    assert floor(healthy)["analytics"].status == "ok"


def test_an_api_without_pools_is_told_to_be_updated(healthy: FakeApi) -> None:
    del healthy.answers["GET /api/v1/fleet"]
    assert floor(healthy)["pools"].status == "warn"


def test_a_full_log_fails_and_one_that_is_nearly_full_warns(
    healthy: FakeApi, nats_server: NatsServer
) -> None:
    async def fill(connection: Connection) -> None:
        await beating(connection)
        config = (await connection.api("STREAM.INFO.LOG"))["config"]
        await connection.api("STREAM.UPDATE.LOG", {**config, "max_msgs": 2})
        log = JetStreamLog(connection)
        for name in ("a", "b"):
            await log.append(SessionClosed(session=SessionId(name)), expected_seq=0, key=name)
        with pytest.raises(LogFull):
            await log.append(SessionClosed(session=SessionId("c")), expected_seq=0, key="c")
        config = (await connection.api("STREAM.INFO.DELTAS"))["config"]
        await connection.api("STREAM.UPDATE.DELTAS", {**config, "max_bytes": 1000})
        await connection.request("delta.a.1.1", b"x" * 850)

    on_nats(nats_server, fill)
    result, found = examine(healthy, nats_server.url)
    assert result.exit_code == 1
    assert found["stream LOG"]["status"] == "fail"
    assert "100% of its max_msgs: full, it refuses what is new (10077)" in found["stream LOG"]["found"]
    assert found["stream LOG"]["advice"] == "raise it: nats stream edit LOG --max-msgs"
    assert found["stream DELTAS"]["status"] == "warn", "it discards what is old"


@pytest.mark.parametrize(("used", "status"), [(10, "ok"), (85, "warn"), (100, "fail")])
def test_the_accounts_storage_is_judged_by_its_limit(used: int, status: str) -> None:
    limits = {"max_storage": 100, "max_memory": -1}
    assert broker._storage({"storage": used, "memory": 5, "limits": limits}).status == status


def test_a_broker_that_cannot_store_any_more_is_seen_by_the_beats_that_it_drops(
    healthy: FakeApi, tmp_path: Path
) -> None:
    server = NatsServer(tmp_path / "small")
    server.config.write_text(
        server.config.read_text().replace("store_dir", "max_file_store: 1MB\n  store_dir")
    )
    server.start()
    stop = threading.Event()

    async def fill(connection: Connection) -> None:
        await provision(connection)
        for number in range(40):
            await connection.request(f"session.s{number}.closed", b"x" * 30_000)

    async def beat_on(connection: Connection) -> None:
        while not stop.is_set():
            await Beats(connection).publish(SchedulerBeat(scheduler="a", active=True, seq=9))
            await asyncio.sleep(0.1)

    beater = threading.Thread(target=on_nats, args=(server, beat_on))
    try:
        on_nats(server, fill)
        beater.start()
        result, found = examine(healthy, server.url)
    finally:
        stop.set()
        beater.join(20)
        server.close()
    assert result.exit_code == 1
    assert found["scheduler"]["status"] == "fail"
    assert found["scheduler"]["found"] == "a beats, but the broker stored no beat at all"
    assert "disk" in found["scheduler"]["advice"]


def test_without_jetstream_one_line_says_so(healthy: FakeApi, nats_server: NatsServer) -> None:
    nats_server.kill()
    text = nats_server.config.read_text()
    nats_server.config.write_text(text[: text.index("jetstream {")])
    nats_server.start()
    result, found = examine(healthy, nats_server.url)
    assert result.exit_code == 1
    assert found["jetstream"]["status"] == "fail"
    assert not [name for name in found if name.startswith("stream ")]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A broker with the shipped configuration and its users."""
    folder = tmp_path / "guarded"
    folder.mkdir()
    config_folder(folder, "--gpu", "node-0")
    server = Server(
        folder, ("-c", "single.conf", "-p", "-1", "-m", "-1"), {"STORE_DIR": str(folder / "data")}
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


def as_user(server: Server, user: str) -> tuple[str, ...]:
    return ("--nats-user", user, "--nats-seed-file", str(server.folder / "secrets" / f"{user}.nk"))


def set_up(server: Server) -> None:
    async def work() -> None:
        seed = str(server.folder / "secrets/scheduler.nk")
        settings = NatsSettings(url=server.url, nkey_seed_file=seed, inbox_prefix="_INBOX_scheduler")
        connection = await connect(settings)
        try:
            await asyncio.wait_for(beating(connection), 20)
        finally:
            await connection.close()

    asyncio.run(work())


def test_an_observer_may_see_all_that_the_doctor_looks_at(healthy: FakeApi, guarded: Server) -> None:
    set_up(guarded)
    result, found = examine(healthy, guarded.url, *as_user(guarded, "observer"))
    assert result.exit_code == 0, result.output
    assert "permissions" not in found
    assert found["scheduler"]["found"] == "a acts, folded to 7"
    assert {name for name in found if found[name]["status"] != "ok"} <= MACHINE


def test_who_may_not_read_is_told_so_and_sees_the_rest(healthy: FakeApi, guarded: Server) -> None:
    set_up(guarded)
    started = time.monotonic()
    _, found = examine(healthy, guarded.url, *as_user(guarded, "runner-node-0"))
    assert time.monotonic() - started < 10, "a refusal is not waited for"
    assert found["permissions"]["status"] == "warn"
    assert "CONSUMER.LIST.TASKS" in found["permissions"]["found"]
    assert "--nats-user observer" in found["permissions"]["advice"]
    assert found["stream LOG"]["status"] == found["poison"]["status"] == "ok"
    assert found["scheduler"]["found"] == "cannot be seen with these permissions"
