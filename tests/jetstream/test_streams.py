"""Streams and consumers are as designed, made once, and refused where they differ."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core import events as e
from helix_es.core.errors import Misconfigured, Unavailable
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.deltas import Delta, Deltas
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.server import free_port
from helix_es.jetstream.streams import provision, provision_gpu, provision_workload, stream_configs
from helix_es.jetstream.tasks import TaskPuller
from tests.conftest import NatsServer

pytestmark = pytest.mark.anyio

WORK = e.Workload("create", "text", "mistral")
SID = e.SessionId("a")


async def admitted(log: JetStreamLog, session: str = "a") -> int:
    """Bring a session to the door and through it; return the sequence of `admitted`."""
    sid = e.SessionId(session)
    about = {"session": sid, "mode": "create", "type": "text", "model": "mistral"}
    one = await log.append(e.SessionCreated(**about, owner="ann"), expected_seq=0, key=f"{sid}1")
    queued = e.TurnQueued(**about, owner="ann", turn=1, prompt="hi")
    two = await log.append(queued, expected_seq=one, key=f"{sid}2")
    event = e.TurnAdmitted(
        **about,
        turn=1,
        attempt=1,
        waited_ms=0,
        estimated_ms=0,
        reason="",
        decided_seq=two,
        decided_at_ms=0,
    )
    return await log.append(event, expected_seq=two, key=f"{sid}3", headers={"traceparent": "00-ab"})


async def test_provisioning_twice_changes_nothing(connection: Connection) -> None:
    before = {name: await connection.api(f"STREAM.INFO.{name}") for name in stream_configs(1)}
    await provision(connection)
    for name, info in before.items():
        assert (await connection.api(f"STREAM.INFO.{name}"))["config"] == info["config"]
    assert before["LOG"]["config"]["discard"] == "new"
    assert before["TASKS"]["config"]["retention"] == "workqueue"
    assert before["DELTAS"]["config"]["storage"] == "memory"


async def test_a_stream_that_differs_is_refused_by_name_and_setting(nats_server: NatsServer) -> None:
    connection = await connect(NatsSettings(url=nats_server.url))
    await connection.api("STREAM.CREATE.LOG", {"name": "LOG", "subjects": ["session.>"], "discard": "old"})
    with pytest.raises(Misconfigured, match=r"LOG is there with \w+ = .*Helix needs"):
        await provision(connection)
    await connection.close()


async def test_an_old_server_is_refused(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_es.jetstream.client.MIN_VERSION", (99, 0))
    with pytest.raises(Misconfigured, match="too old"):
        await connect(NatsSettings(url=nats_server.url))


async def test_no_server_is_told_in_bounded_time_and_without_secrets() -> None:
    url = f"nats://me:secret@127.0.0.1:{free_port()}"
    with pytest.raises(Misconfigured, match="no NATS server") as error:
        await connect(NatsSettings(url=url, connect_timeout_s=0.5))
    assert "secret" not in str(error.value)


async def test_a_fact_becomes_one_task_with_its_sequence_and_trace(connection: Connection) -> None:
    log = JetStreamLog(connection)
    await provision_workload(connection, WORK)
    await provision_workload(connection, WORK)
    puller = TaskPuller(connection, "create-text-mistral", prioritized=True)
    await puller.open()
    assert await puller.pull(expires_s=0.05) is None
    seq = await admitted(log)
    task = await puller.pull()
    assert task is not None
    assert task.subject == "task.create.text.mistral"
    assert task.log_seq == seq
    assert task.headers["traceparent"] == "00-ab"
    assert isinstance(task.event, e.TurnAdmitted)
    await task.nak()
    again = await puller.pull()
    assert again is not None
    assert again.log_seq == seq, "given back, it comes again"
    await again.ack()
    assert await puller.pull(expires_s=0.05) is None
    await puller.close()


async def test_the_emptiest_gpu_is_served_first(connection: Connection) -> None:
    log = JetStreamLog(connection)
    await provision_workload(connection, WORK)
    got: list[int] = []

    async def wait(load: int) -> None:
        puller = TaskPuller(connection, "create-text-mistral", prioritized=True)
        await puller.open()
        task = await puller.pull(load=load, expires_s=5)
        assert task is not None
        got.append(load)
        await task.ack()
        await puller.close()

    async with asyncio.TaskGroup() as group:
        for load in (7, 4, 0):
            group.create_task(wait(load))
        async with asyncio.timeout(5):
            while True:
                info = await connection.api("CONSUMER.INFO.TASKS.create-text-mistral")
                if info["num_waiting"] == 3:
                    break
        for n, expected in enumerate((1, 2, 3)):
            await admitted(log, f"s{n}")
            async with asyncio.timeout(5):
                while len(got) < expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
    assert got == [0, 4, 7]


async def test_the_consumer_of_a_worker_that_comes_and_goes_is_forgotten(connection: Connection) -> None:
    await provision_gpu(connection, e.GpuId("box-0"))
    await provision_gpu(connection, e.GpuId("worker"), passing=True)
    kept = [await connection.api(f"CONSUMER.INFO.TASKS.continue-{name}") for name in ("box-0", "worker")]
    assert [bool(each["config"].get("inactive_threshold")) for each in kept] == [False, True]


async def test_a_continued_turn_goes_to_its_gpu_alone(connection: Connection) -> None:
    for gpu in ("box-0", "box-1"):
        await provision_gpu(connection, e.GpuId(gpu))
    event = e.TurnContinued(
        session=SID, turn=2, type="text", model="mistral", gpu=e.GpuId("box-1"), after_seq=0, prompt="x"
    )
    await JetStreamLog(connection).append(event, expected_seq=0, key="k")
    pullers = [TaskPuller(connection, f"continue-{gpu}", prioritized=False) for gpu in ("box-0", "box-1")]
    for puller in pullers:
        await puller.open()
    mine = await pullers[1].pull()
    assert mine is not None
    assert mine.event == event
    assert await pullers[0].pull(expires_s=0.05) is None
    for puller in pullers:
        await puller.close()


async def test_pieces_are_heard_live_and_remembered_for_whoever_comes_late(connection: Connection) -> None:
    deltas = Deltas(connection)
    heard: list[Delta] = []
    said = [Delta(session="a", turn=1, attempt=1, offset=n, text="x") for n in range(3)]
    async with deltas.listen("a", heard.append):
        await connection.nc.flush()
        for delta in said:
            await deltas.publish(delta)
        await deltas.publish(Delta(session="b", turn=1, attempt=1, offset=0, text="not ours"))
        async with asyncio.timeout(5):
            while len(heard) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    assert heard == said
    assert await deltas.read("a", 1, 1) == said
    assert await deltas.read("a", 1, 2) == []


async def test_the_last_heartbeat_of_each_gpu_is_one_read(connection: Connection) -> None:
    beats = Beats(connection)
    for n in range(3):
        for gpu in ("box-0", "box-1"):
            await beats.publish(
                e.GpuHeartbeat(
                    gpu=e.GpuId(gpu),
                    incarnation="i",
                    memory_total_bytes=1,
                    memory_used_bytes=n,
                    utilisation=0,
                )
            )
    async with asyncio.timeout(5):
        while await beats.last_seq() < 6:
            pass
    latest = await beats.latest()
    assert set(latest) == {"box-0", "box-1"}
    assert all(
        isinstance(r.event, e.GpuHeartbeat) and r.event.memory_used_bytes == 2 for r in latest.values()
    )


async def test_following_survives_a_restart_of_the_server_without_gap_or_repetition(
    nats_server: NatsServer,
) -> None:
    connection = await connect(NatsSettings(url=nats_server.url))
    await provision(connection)
    log = JetStreamLog(connection)
    seen: list[int] = []

    async def read(count: int) -> None:
        async for batch in log.follow(0):
            seen.extend(record.seq for record in batch.records)
            if len(seen) >= count:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(read(6))
        for n in range(2):
            await admitted(log, f"s{n}")
            if n == 0:
                nats_server.kill()
                nats_server.start()
    assert seen == [1, 2, 3, 4, 5, 6]
    await connection.close()


async def test_a_server_that_is_gone_is_unavailable_not_a_conflict(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_es.jetstream.log.TRY_S", 0.2)
    monkeypatch.setattr("helix_es.jetstream.log.DEADLINE_S", 0.5)
    connection = await connect(NatsSettings(url=nats_server.url))
    await provision(connection)
    nats_server.kill()
    with pytest.raises(Unavailable):
        await admitted(JetStreamLog(connection))
    await connection.close()


async def test_an_acknowledgement_lost_in_a_restart_is_no_conflict(nats_server: NatsServer) -> None:
    """The append that is repeated by itself while the server comes back is stored once and succeeds."""
    connection = await connect(NatsSettings(url=nats_server.url))
    await provision(connection)
    log = JetStreamLog(connection)
    nats_server.kill()
    event = e.SessionCreated(session=SID, owner="ann", mode="create", type="text", model="mistral")
    appending = asyncio.create_task(log.append(event, expected_seq=0, key="k"))
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(30):
        seq = await appending
    assert [record.seq for record in await log.history("session.a.>")] == [seq]
    await connection.close()


async def test_a_forged_message_is_dropped_by_every_reader(connection: Connection) -> None:
    log = JetStreamLog(connection)
    seq = await admitted(log)
    # a server's answer stored under a protected subject through a forged reply
    await connection.publish("$JS.API.STREAM.INFO.LOG", b"", reply="session.a.turn.completed.box-0")
    async with asyncio.timeout(5):
        while await log.last_seq() == seq:
            pass
    records = await log.history("session.a.>")
    assert records[-1].event is None
    async for batch in log.follow(seq):
        if batch.records:
            assert batch.records[0].event is None
            return
