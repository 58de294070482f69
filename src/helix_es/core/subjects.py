"""The subject grammar, in one place: which subject a fact is stored under, and what a subject says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from helix_es.core import events as e
from helix_es.core.errors import Rejected

TOKEN = re.compile(r"[a-z0-9_-]{1,64}\Z")
LOG_SUBJECTS = (
    "session.>",
    "fleet.>",
    "gpu.*.joined",
    "gpu.*.left",
    "gpu.*.assigned",
    "gpu.*.ready",
    "gpu.*.lost",
)
BEAT_SUBJECTS = ("gpu.*.heartbeat", "beat.scheduler")
SCHEDULER_BEAT = "beat.scheduler"

# fact -> work: the broker derives the tasks itself
TASK_TRANSFORMS = (
    ("session.*.turn.admitted.create.*.*", "task.create.{{wildcard(2)}}.{{wildcard(3)}}"),
    ("session.*.turn.admitted.finetune.*.*", "task.finetune.{{wildcard(2)}}.{{wildcard(3)}}"),
    ("session.*.turn.continued.*.*.*", "task.continue.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}"),
)


def token(value: str, what: str) -> str:
    """Return `value` if it can stand in a subject; raises Rejected("bad_token") if not."""
    if not TOKEN.match(value):
        raise Rejected(
            "bad_token", f"{what} {value[:80]!r} is not usable: 1 to 64 characters of a-z, 0-9, '_' and '-'"
        )
    return value


def _of_turn(event: Any) -> str:
    return f"session.{event.session}.{event.__struct_config__.tag}.{event.gpu}"


def _of_gpu(event: Any) -> str:
    return f"gpu.{event.gpu}.{event.__struct_config__.tag[4:]}"


# A table by type, since decoding looks here for every fact that is read.
_SUBJECTS: dict[type[e.Event], Callable[[Any], str]] = {
    e.SessionCreated: lambda x: f"session.{x.session}.created.{x.type}.{x.model}",
    e.TurnQueued: lambda x: f"session.{x.session}.turn.queued.{x.mode}.{x.type}.{x.model}",
    e.TurnAdmitted: lambda x: f"session.{x.session}.turn.admitted.{x.mode}.{x.type}.{x.model}",
    e.TurnContinued: lambda x: f"session.{x.session}.turn.continued.{x.type}.{x.model}.{x.gpu}",
    e.TurnStarted: lambda x: f"session.{x.session}.turn.started.{x.gpu}",
    e.TurnProgressed: _of_turn,
    e.TurnCancelling: _of_turn,
    e.TurnYielding: _of_turn,
    e.TurnReturned: _of_turn,
    e.TurnCompleted: lambda x: f"session.{x.session}.turn.completed.{x.gpu}",
    e.TurnFailed: _of_turn,
    e.TurnCancelled: _of_turn,
    e.SessionReleased: lambda x: f"session.{x.session}.released.{x.gpu}",
    e.SessionClosed: lambda x: f"session.{x.session}.closed",
    e.FleetResized: lambda x: f"fleet.{x.pool}.resized",
    e.PolicySet: lambda x: "fleet.policy.set",
    e.SchedulerBeat: lambda x: SCHEDULER_BEAT,
    e.GpuJoined: _of_gpu,
    e.GpuLeft: _of_gpu,
    e.GpuAssigned: _of_gpu,
    e.GpuReady: _of_gpu,
    e.GpuLost: _of_gpu,
    e.GpuHeartbeat: _of_gpu,
}


def subject_of(event: e.AnyEvent) -> str:
    """Return the one subject that `event` is stored under."""
    return _SUBJECTS[type(event)](event)


def fence_of(subject: str) -> str:
    """Return the filter that every append under `subject` is fenced by: always this identical string.

    A fence by any other string would be unsafe on a replicated stream, so nobody else builds one.
    """
    root, name = about(subject)
    return f"{root}.{name}.>"


def about(subject: str) -> tuple[str, str]:
    """Return the kind of thing that a stored subject is about, and its name, as in ("session", "s1").

    A stranger can store messages under a subject of two words; there is none of one in the log.
    """
    root, _, rest = subject.partition(".")
    return root, rest.partition(".")[0]


def session_filter(session: str) -> str:
    """Return the subjects of one session; also its fence."""
    return f"session.{session}.>"


def gpu_filters(gpu: str) -> tuple[str, ...]:
    """Return the stored facts that the runner of `gpu` must hear."""
    return (
        f"session.*.released.{gpu}",
        f"session.*.turn.cancelling.{gpu}",
        f"session.*.turn.yielding.{gpu}",
        f"gpu.{gpu}.assigned",
        f"gpu.{gpu}.lost",
    )


def task_subject(workload: e.Workload) -> str:
    """Return the task subject of a queue, as in `task.create.text.mistral`."""
    return f"task.{workload.mode}.{workload.type}.{workload.model}"


def shared_consumer(workload: e.Workload) -> str:
    """Return the durable that all GPUs of a workload pull from."""
    return f"{workload.mode}-{workload.type}-{workload.model}"


def continue_subject(gpu: str) -> str:
    """Return the task subjects of the sessions bound to `gpu`."""
    return f"task.continue.*.*.{gpu}"


def continue_consumer(gpu: str) -> str:
    """Return the durable that only `gpu` pulls from."""
    return f"continue-{gpu}"


def delta_subject(session: str, turn: int, attempt: int) -> str:
    """Return where the pieces of one attempt at a turn are published."""
    return f"delta.{session}.{turn}.{attempt}"
