"""What each of the broker's users may do, asked of a real nats-server with the shipped configuration."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from local_nats import Server, User, config_folder, connect

Check = Callable[[dict[str, User]], Awaitable[None]]
SINGLE = ("-c", "single.conf", "-p", "-1", "-m", "-1")  # -1: a port that is free
ROLES = ("api", "scheduler", "observer", "runner-node-0", "runner-other-0")

LOG = {
    "name": "LOG",
    "subjects": [
        "session.>",
        "fleet.>",
        *(f"gpu.*.{verb}" for verb in ("joined", "left", "assigned", "ready", "lost")),
    ],
    "storage": "file",
    "discard": "new",
    "allow_direct": True,
}
BEATS = {
    "name": "BEATS",
    "subjects": ["gpu.*.heartbeat", "beat.scheduler"],
    "storage": "file",
    "allow_direct": True,
}
TASKS = {
    "name": "TASKS",
    "retention": "workqueue",
    "storage": "file",
    "republish": {"src": "task.>", "dest": "task.>"},
    "sources": [
        {
            "name": "LOG",
            "subject_transforms": [
                {
                    "src": "session.*.turn.admitted.create.*.*",
                    "dest": "task.create.{{wildcard(2)}}.{{wildcard(3)}}",
                },
                {
                    "src": "session.*.turn.continued.*.*.*",
                    "dest": "task.continue.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}",
                },
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = config_folder(
        tmp_path_factory.mktemp("nats"), "--gpu", "node-0", "--gpu", "other-0", "--model", "text/mistral"
    )
    server = Server(folder, SINGLE, {"STORE_DIR": str(folder / "data")})
    try:
        server.start()
        as_users(server, provision)
        yield server
    finally:
        server.stop()


def as_users(server: Server, check: Check) -> None:
    """Run `check` with a connection for every role."""

    async def run() -> None:
        users = {role: await connect(server.url, server.folder, role) for role in ROLES}
        try:
            async with asyncio.timeout(30):
                await check(users)
        finally:
            for user in users.values():
                await user.nc.close()

    asyncio.run(run())


async def provision(users: dict[str, User]) -> None:
    """The scheduler makes the streams and the consumers of TASKS, as it does in production."""
    scheduler = users["scheduler"]
    for stream in (LOG, BEATS, TASKS):
        assert "error" not in await scheduler.call(f"$JS.API.STREAM.CREATE.{stream['name']}", stream)
    for name, subject in (
        ("create-text-mistral", "task.create.text.mistral"),
        ("continue-node-0", "task.continue.*.*.node-0"),
        ("continue-other-0", "task.continue.*.*.other-0"),
    ):
        config = {"name": name, "durable_name": name, "filter_subject": subject, "ack_policy": "explicit"}
        body = {"stream_name": "TASKS", "action": "create", "config": config}
        answer = await scheduler.call(f"$JS.API.CONSUMER.CREATE.TASKS.{name}.{subject}", body)
        assert "error" not in answer
    assert not scheduler.refusals


async def stored(user: User, subject: str) -> int:
    """How many messages LOG holds under `subject`."""
    answer = await user.call("$JS.API.STREAM.INFO.LOG", {"subjects_filter": subject})
    return sum((answer["state"].get("subjects") or {}).values())


async def pull(user: User, consumer: str) -> nats.aio.msg.Msg:
    body = json.dumps({"batch": 1, "expires": 3_000_000_000}).encode()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.TASKS.{consumer}"
    return await user.nc.request(subject, body, timeout=4, old_style=True)  # a task keeps its own subject


def test_a_runner_publishes_its_own_facts_and_no_other_gpus(broker: Server) -> None:
    async def check(users: dict[str, User]) -> None:
        runner = users["runner-node-0"]
        own = await runner.nc.jetstream().publish("session.x.turn.completed.node-0", b"{}", timeout=5)
        assert own.stream == "LOG"
        assert await runner.refused("session.x.turn.completed.other-0")
        assert (
            'permissions violation for publish to "session.x.turn.completed.other-0"' in runner.refusals[-1]
        )
        assert await stored(users["observer"], "session.x.turn.completed.*") == 1

    as_users(broker, check)


@pytest.mark.parametrize("verb", ["started", "progressed", "returned", "completed", "failed", "cancelled"])
def test_turn_facts_end_in_the_runners_own_gpu(broker: Server, verb: str) -> None:
    async def check(users: dict[str, User]) -> None:
        runner = users["runner-node-0"]
        assert not await runner.refused(f"session.s.turn.{verb}.node-0")
        assert await runner.refused(f"session.s.turn.{verb}.other-0")

    as_users(broker, check)


@pytest.mark.parametrize("verb", ["joined", "left", "ready", "heartbeat"])
def test_gpu_facts_are_about_the_runners_own_gpu(broker: Server, verb: str) -> None:
    async def check(users: dict[str, User]) -> None:
        runner = users["runner-node-0"]
        assert not await runner.refused(f"gpu.node-0.{verb}")
        assert await runner.refused(f"gpu.other-0.{verb}")

    as_users(broker, check)


@pytest.mark.parametrize(
    "subject",
    [
        "session.s.created.text.mistral",
        "session.s.turn.queued.create.text.mistral",
        "session.s.turn.admitted.create.text.mistral",
        "session.s.turn.continued.text.mistral.node-0",
        "session.s.turn.cancelling.node-0",
        "session.s.released.node-0",
        "session.s.closed",
        "gpu.node-0.assigned",
        "gpu.node-0.lost",
        "fleet.p.resized",
        "beat.scheduler",
        "task.create.text.mistral",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.PURGE.LOG",
        "$JS.API.STREAM.UPDATE.LOG",
        "$JS.API.STREAM.MSG.DELETE.LOG",
        "$JS.API.CONSUMER.LIST.LOG",
        "$JS.API.CONSUMER.NAMES.LOG",
        "$JS.API.CONSUMER.CREATE.TASKS.mine.task.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.TASKS.mine",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.continue-other-0",
        "$JS.ACK.TASKS.continue-other-0.1.1.1.1.0",
        "_INBOX_runner-other-0.x",
        "_INBOX.x",
    ],
)
def test_a_runner_is_refused(broker: Server, subject: str) -> None:
    async def check(users: dict[str, User]) -> None:
        assert await users["runner-node-0"].refused(subject)

    as_users(broker, check)


@pytest.mark.parametrize(
    ("subject", "refused"),
    [
        ("gpu.node-0.assigned", False),
        ("session.*.turn.cancelling.node-0", False),
        ("session.*.released.node-0", False),
        ("session.*.closed", False),
        ("_INBOX_runner-other-0.>", True),
        ("_INBOX.>", True),
        ("gpu.other-0.assigned", True),
        ("task.>", True),
        ("delta.>", True),
        (">", True),
    ],
)
def test_a_runner_hears_what_is_for_it(broker: Server, subject: str, refused: bool) -> None:
    async def check(users: dict[str, User]) -> None:
        assert await users["runner-node-0"].refused_reading(subject) is refused

    as_users(broker, check)


def test_a_runner_takes_and_acknowledges_work_that_the_log_routed_to_it(broker: Server) -> None:
    async def check(users: dict[str, User]) -> None:
        runner = users["runner-node-0"]
        await users["scheduler"].nc.jetstream().publish("session.a.turn.admitted.create.text.mistral", b"a")
        await users["api"].nc.jetstream().publish("session.b.turn.continued.text.mistral.node-0", b"b")
        for consumer, body in (("create-text-mistral", b"a"), ("continue-node-0", b"b")):
            task = await pull(runner, consumer)
            assert task.data == body
            await task.in_progress()
            await task.ack_sync(timeout=5)
        assert not runner.refusals

    as_users(broker, check)


def test_a_runner_reads_history_by_direct_get(broker: Server) -> None:
    async def check(users: dict[str, User]) -> None:
        runner = users["runner-node-0"]
        await runner.nc.jetstream().publish("session.h.turn.started.node-0", b"h")
        body = {"seq": 1, "next_by_subj": "session.h.>", "batch": 10}
        answer = await runner.nc.request("$JS.API.DIRECT.GET.LOG", json.dumps(body).encode(), timeout=5)
        assert (answer.data, answer.headers["Nats-Subject"]) == (b"h", "session.h.turn.started.node-0")
        last = await runner.nc.jetstream().get_last_msg("LOG", "session.h.turn.started.node-0", direct=True)
        assert last.data == b"h"

    as_users(broker, check)


@pytest.mark.parametrize("role", ["api", "scheduler", "observer", "runner-node-0"])
def test_every_role_follows_the_log_with_an_ephemeral_pull_consumer(broker: Server, role: str) -> None:
    async def check(users: dict[str, User]) -> None:
        user = users[role]
        await users["scheduler"].nc.jetstream().publish("session.f.released.node-0", b"f")
        js = user.nc.jetstream()
        config = {"ack_policy": "none", "filter_subject": "session.f.>", "inactive_threshold": 5.0}
        for name in (f"follow-{role}", None):
            info = await js.add_consumer("LOG", nats.js.api.ConsumerConfig(name=name, **config))
            follower = await js.pull_subscribe_bind(info.name, "LOG")
            [first, *_] = await follower.fetch(1, timeout=5)
            assert first.data == b"f"
            await follower.unsubscribe()
        assert not user.refusals

    as_users(broker, check)


def test_the_api_and_the_scheduler_say_only_what_is_theirs(broker: Server) -> None:
    api = (
        "session.s.created.text.mistral",
        "session.s.turn.queued.finetune.text.mistral",
        "session.s.turn.continued.text.mistral.node-0",
        "session.s.turn.cancelling.node-0",
        "session.s.turn.cancelled",
        "session.s.closed",
    )
    scheduler = (
        "session.s.turn.admitted.create.text.mistral",
        "session.s.released.node-0",
        "gpu.node-0.assigned",
        "gpu.node-0.lost",
        "fleet.p.resized",
        "beat.scheduler",
    )
    runners = ("session.s.turn.started.node-0", "gpu.node-0.joined", "gpu.node-0.heartbeat", "delta.s.1.1")

    async def check(users: dict[str, User]) -> None:
        for role, own, others in (
            ("api", api, (*scheduler, *runners)),
            ("scheduler", scheduler, (*api, *runners)),
            ("observer", (), (*api, *scheduler, *runners)),
        ):
            assert [s for s in own if await users[role].refused(s)] == []
            assert [s for s in others if not await users[role].refused(s)] == []

    as_users(broker, check)


def test_nobody_deletes_or_purges_the_log(broker: Server) -> None:
    async def check(users: dict[str, User]) -> None:
        for user in users.values():
            for verb in ("DELETE", "PURGE", "MSG.DELETE", "RESTORE"):
                assert await user.refused(f"$JS.API.STREAM.{verb}.LOG")

    as_users(broker, check)


def test_a_connection_without_a_seed_is_turned_away(broker: Server) -> None:
    host, port = broker.url.removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw, raw.makefile("rwb") as lines:
        hello = lines.readline()
        assert hello.startswith(b"INFO ")
        assert json.loads(hello[5:])["auth_required"] is True
        lines.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        lines.flush()
        assert b"Authorization Violation" in lines.readline()


def test_files_travel_through_the_object_store(broker: Server) -> None:
    async def check(users: dict[str, User]) -> None:
        store: dict[str, Any] = {
            "name": "OBJ_files",
            "subjects": ["$O.files.C.>", "$O.files.M.>"],
            "storage": "file",
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        assert "error" not in await users["scheduler"].call("$JS.API.STREAM.CREATE.OBJ_files", store)
        images = await users["runner-node-0"].nc.jetstream().object_store("files")
        await images.put("picture", b"p" * 300_000)
        seen = await users["api"].nc.jetstream().object_store("files")
        assert (await seen.get("picture")).data == b"p" * 300_000
        datasets = await users["api"].nc.jetstream().object_store("files")
        await datasets.put("dataset", b"d")
        assert (await images.get("dataset")).data == b"d"
        assert await users["runner-node-0"].refused("$JS.API.STREAM.PURGE.OBJ_files")

    as_users(broker, check)


def test_the_server_listens_and_is_monitored_on_loopback_only(broker: Server) -> None:
    settings = broker.get("/varz")
    assert (settings["host"], settings["http_host"]) == ("127.0.0.1", "127.0.0.1")
    assert settings["max_payload"] == 1024 * 1024
    assert settings["jetstream"]["config"]["sync_always"] is True


def test_http_workers_are_a_choice(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "--http-workers")
    server = Server(folder, SINGLE, {"STORE_DIR": str(folder / "data")})

    async def check() -> None:
        user = await connect(server.url, folder, "api")
        try:
            assert not await user.refused("session.s.turn.started.worker-0")
            assert not await user.refused("gpu.worker-0.heartbeat")
            assert await user.refused("session.s.turn.admitted.create.text.mistral")
        finally:
            await user.nc.close()

    try:
        server.start()
        asyncio.run(check())
    finally:
        server.stop()
