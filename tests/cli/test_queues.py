"""What `helix doctor` says of the work queue."""

from __future__ import annotations

from typing import Any

import pytest

from helix_es.cli import queues
from helix_es.core import events as e
from helix_es.jetstream.client import Connection
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision_workload


def info(messages: int, first: str) -> dict[str, Any]:
    return {"ts": "2026-11-22T11:02:00.5Z", "state": {"messages": messages, "first_ts": first}}


def consumer(pending: int, *, out: int = 0, pulls: int = 0, again: int = 0) -> dict[str, Any]:
    return {
        "name": "create-text-m",
        "num_pending": pending,
        "num_ack_pending": out,
        "num_waiting": pulls,
        "num_redelivered": again,
    }


NEW, OLD, OLDEST = "2026-11-22T11:01:59Z", "2026-11-22T11:01:30Z", "2026-11-22T11:00:00.123456789Z"


@pytest.mark.parametrize(
    ("messages", "first", "queue", "status", "said"),
    [
        (
            0,
            "0001-01-01T00:00:00Z",
            consumer(0, pulls=2),
            "ok",
            "0 waiting in 1 queues, none given out twice",
        ),
        (3, NEW, consumer(3), "ok", "3 waiting in 1 queues, none given out twice"),
        (3, OLD, consumer(3), "warn", "nobody pulls 3 in create-text-m; the oldest is 30 s old"),
        (3, OLDEST, consumer(3), "fail", "nobody pulls 3 in create-text-m; the oldest is 120 s old"),
        (3, OLDEST, consumer(3, pulls=1), "ok", "3 waiting in 1 queues, none given out twice"),
        (
            3,
            OLDEST,
            consumer(1, out=1, pulls=1),
            "fail",
            "1 that no queue gives out any more, up to 120 s old",
        ),
        (1, OLD, consumer(0, out=1, again=1), "warn", "given out more than once: 1 in create-text-m"),
    ],
)
def test_tasks_are_judged(messages: int, first: str, queue: dict[str, Any], status: str, said: str) -> None:
    found = queues.judge(info(messages, first), [queue])
    assert (found.status, found.found) == (status, said)


@pytest.mark.anyio
async def test_a_task_that_nobody_pulls_is_seen_in_a_real_queue(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "OLD_S", 0.0)
    await provision_workload(connection, e.Workload("create", "text", "m"))
    admitted = e.TurnAdmitted(
        session=e.SessionId("s1"),
        turn=1,
        attempt=1,
        mode="create",
        type="text",
        model="m",
        waited_ms=0,
        estimated_ms=None,
        reason="1 free",
        decided_seq=0,
        decided_at_ms=0,
    )
    await JetStreamLog(connection).append(admitted, expected_seq=0, key="k")
    told = await connection.api("STREAM.INFO.TASKS")
    while not told["state"]["messages"]:
        told = await connection.api("STREAM.INFO.TASKS")
    (found,) = await queues.tasks(connection, await connection.api("STREAM.INFO.TASKS"))
    assert found.status == "warn"
    assert found.found.startswith("nobody pulls 1 in create-text-m; ")
