"""The streams and consumers as they must be: made where missing, refused where they differ."""

from __future__ import annotations

from typing import Any

from helix_es.core import subjects
from helix_es.core.errors import Misconfigured
from helix_es.core.events import GpuId, Workload
from helix_es.jetstream.client import BUSY, ApiError, Connection, translate

SECOND_NS = 1_000_000_000
NOT_FOUND = frozenset({10059, 10014})  # stream, consumer
EXISTS = frozenset({10058, 10148, 10013})  # a stream or consumer of that name with another configuration
MAX_CONSUMERS = 100_000  # one a GPU and one a follower; the server's default is 1,000 since 2.15
ACK_WAIT_S = 5  # a task whose runner died before it said `started` goes to another after this long
MAX_WAITING = 100_000  # waiting pulls on a shared consumer: one a GPU
FORGOTTEN_AFTER_S = 7200  # twice the longest lease of an HTTP worker
FILES_BUCKET = "files"


def stream_configs(replicas: int) -> dict[str, dict[str, Any]]:
    """Return the configuration of each stream, by name."""
    common = {"num_replicas": replicas, "max_consumers": MAX_CONSUMERS}
    return {
        "LOG": {
            **common,
            "subjects": list(subjects.LOG_SUBJECTS),
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "allow_direct": True,
            "duplicate_window": 600 * SECOND_NS,
        },
        "BEATS": {
            **common,
            "subjects": list(subjects.BEAT_SUBJECTS),
            "storage": "file",
            "retention": "limits",
            "max_age": 3600 * SECOND_NS,
            "allow_direct": True,
        },
        "TASKS": {
            **common,
            "storage": "file",
            "retention": "workqueue",
            "sources": [
                {
                    "name": "LOG",
                    "subject_transforms": [
                        {"src": src, "dest": dest} for src, dest in subjects.TASK_TRANSFORMS
                    ],
                }
            ],
            "republish": {"src": "task.>", "dest": "task.>"},
        },
        "DELTAS": {
            **common,
            "subjects": ["delta.>"],
            "storage": "memory",
            "retention": "limits",
            "max_age": 900 * SECOND_NS,
            "allow_direct": True,
        },
        f"OBJ_{FILES_BUCKET}": {
            "num_replicas": replicas,
            "subjects": [f"$O.{FILES_BUCKET}.C.>", f"$O.{FILES_BUCKET}.M.>"],
            "storage": "file",
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        },
    }


async def provision(connection: Connection, *, replicas: int = 1) -> None:
    """Make every stream that is missing; the log first, since the tasks are sourced from it.

    Raises Misconfigured, naming the setting, if a stream is there but differs.
    """
    for name, config in stream_configs(replicas).items():
        await _stream(connection, name, config)


async def _stream(connection: Connection, name: str, config: dict[str, Any]) -> None:
    try:
        await connection.api(f"STREAM.CREATE.{name}", {"name": name, **config})
        return
    except ApiError as error:
        if error.err_code in BUSY:
            raise translate(error, f"stream {name}") from error
        if error.err_code not in EXISTS:
            raise Misconfigured(f"stream {name} could not be made: {error}") from error
    compare(name, config, (await connection.api(f"STREAM.INFO.{name}"))["config"])


def compare(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise Misconfigured, naming the setting, if a stream's `found` configuration differs from `wanted`."""
    for key, value in wanted.items():
        if not _same(found.get(key), value):
            raise Misconfigured(
                f"stream {name} is there with {key} = {found.get(key)!r}, but Helix needs {value!r}; "
                f"correct it (nats stream edit {name}) or use another account"
            )


def _same(found: Any, wanted: Any) -> bool:
    """Compare as the server answers: what it adds of its own does not count, order of lists does not either."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_same(found.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return False
        return all(any(_same(f, w) for f in found) for w in wanted)
    return bool(found == wanted)


async def provision_workload(connection: Connection, workload: Workload) -> None:
    """Make the shared consumer that all GPUs of `workload` pull from: the emptiest GPU is served first."""
    name = subjects.shared_consumer(workload)
    config = {
        **_consumer(name, subjects.task_subject(workload)),
        "max_waiting": MAX_WAITING,
        "priority_groups": [PRIORITY_GROUP],
        "priority_policy": "prioritized",
    }
    await _create(connection, config)


async def provision_gpu(connection: Connection, gpu: GpuId, *, passing: bool = False) -> None:
    """Make the consumer of the sessions that are bound to `gpu`.

    `passing`: the server forgets it some time after the last pull. HTTP workers come with a new name each time a
    container starts; a longer silence than this no worker may have.
    """
    config = _consumer(subjects.continue_consumer(gpu), subjects.continue_subject(gpu))
    if passing:
        config["inactive_threshold"] = FORGOTTEN_AFTER_S * SECOND_NS
    await _create(connection, config)


PRIORITY_GROUP = "gpus"


def _consumer(name: str, subject_filter: str) -> dict[str, Any]:
    return {
        "durable_name": name,
        "name": name,
        "filter_subject": subject_filter,
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT_S * SECOND_NS,
        "max_ack_pending": 100_000,  # reaching it would stall every GPU; must exceed the slots of the fleet
    }


async def _create(connection: Connection, config: dict[str, Any]) -> None:
    subject = f"CONSUMER.CREATE.TASKS.{config['name']}.{config['filter_subject']}"
    try:
        await connection.api(subject, {"stream_name": "TASKS", "action": "create", "config": config})
    except ApiError as error:
        if error.err_code in BUSY:
            raise translate(error, f"consumer {config['name']}") from error
        if error.err_code not in EXISTS:
            raise Misconfigured(f"consumer {config['name']} could not be made: {error}") from error
