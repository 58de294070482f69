"""Only the checkpoint that somebody may go on from is kept."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core import events as e
from helix_es.core.subjects import subject_of
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_es.testing import InMemoryLog
from helix_projections.checkpoints import Checkpoints, superseded

SID = e.SessionId("s1")
GPU = e.GpuId("box-0")
ABOUT = {"session": SID, "turn": 1, "attempt": 1}


def training(*events: e.AnyEvent) -> list[e.Recorded]:
    work: dict[str, str] = {"mode": "finetune", "type": "text", "model": "smollm2", "owner": "ann"}
    begun: list[e.AnyEvent] = [
        e.SessionCreated(session=SID, **work),  # type: ignore[arg-type]
        e.TurnQueued(session=SID, turn=1, prompt="", **work),  # type: ignore[arg-type]
        e.TurnAdmitted(
            **ABOUT,  # type: ignore[arg-type]
            mode="finetune",
            type="text",
            model="smollm2",
            waited_ms=0,
            estimated_ms=0,
            reason="1 free",
            decided_seq=1,
            decided_at_ms=1,
        ),
        e.TurnStarted(**ABOUT, gpu=GPU, incarnation="i"),  # type: ignore[arg-type]
    ]
    return [e.Recorded(n, n, subject_of(x), x) for n, x in enumerate([*begun, *events], start=1)]


def checkpoint(file: str, step: int) -> e.TurnProgressed:
    return e.TurnProgressed(**ABOUT, gpu=GPU, step=step, steps=9, checkpoint=[file])  # type: ignore[arg-type]


def test_while_the_turn_is_open_all_but_the_last_are_superseded() -> None:
    plain = e.TurnProgressed(**ABOUT, gpu=GPU, step=5, steps=9)  # type: ignore[arg-type]
    assert superseded(SID, training(checkpoint("c1", 2), checkpoint("c2", 4), plain)) == ["c1"]
    assert superseded(SID, training()) == []


def test_a_completed_training_needs_none_and_a_cancelled_one_its_last() -> None:
    both = (checkpoint("c1", 2), checkpoint("c2", 4))
    done = e.TurnCompleted(**ABOUT, gpu=GPU, output="", files=["w", "c"])  # type: ignore[arg-type]
    assert superseded(SID, training(*both, done)) == ["c1", "c2"]
    stopped = e.TurnCancelled(**ABOUT, gpu=GPU)  # type: ignore[arg-type]
    assert superseded(SID, training(*both, stopped)) == ["c1"]


def test_of_a_closed_session_nobody_wants_any() -> None:
    both = (checkpoint("c1", 2), checkpoint("c2", 4))
    assert superseded(SID, training(*both, e.SessionClosed(session=SID))) == ["c1", "c2"]


@pytest.mark.anyio
async def test_they_are_removed_from_the_store_by_whoever_acts(connection: Connection) -> None:
    names = iter(["c1", "c2"])
    files = Files(connection, new_id=lambda: next(names))
    for _ in range(2):
        await files.put(b"x", owner="ann", name="c", media="a/b", purpose="checkpoint")
    log = InMemoryLog(lambda: 1)
    acts = False
    janitor = Checkpoints(log, files, lambda: acts)
    records = training(checkpoint("c1", 2), checkpoint("c2", 4))
    for record in records:
        assert record.event is not None
        log.append_now(record.event, expected_seq=record.seq - 1, key=str(record.seq))
    running = asyncio.create_task(janitor.run())
    try:
        janitor.hear(records[-2], batch=True)
        janitor.hear(records[0], batch=True)
        await asyncio.wait_for(janitor.due.join(), 5)
        assert len(await files.list("ann")) == 2, "a standby removes nothing"
        acts = True
        janitor.hear(records[-1], batch=True)
        await asyncio.wait_for(janitor.due.join(), 5)
        assert [each.id for each in await files.list("ann")] == ["c2"]
    finally:
        running.cancel()
