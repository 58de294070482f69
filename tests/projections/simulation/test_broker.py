"""Tasks go to the GPU that said that it was emptiest, as those of the real broker do."""

from __future__ import annotations

from helix_es.core import events as e
from helix_projections.simulation.broker import EXPIRES_MS, Broker
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.gpu import SimulatedGpu
from helix_projections.simulation.meter import Level
from helix_projections.simulation.offer import uniform
from tests.projections.simulation.floor import WORK


def gpus(*held: int, slots: int = 4) -> list[SimulatedGpu]:
    found = []
    for offer, sessions in zip(uniform(len(held), WORK, slots=slots), held, strict=True):
        gpu = SimulatedGpu(offer, Clock(), Level(), lambda gpu, job: None)
        gpu.serving, gpu.slots = WORK, slots
        gpu.bound = dict.fromkeys(f"{offer.gpu}/{n}" for n in range(sessions))
        found.append(gpu)
    return found


def task(name: str) -> e.TurnAdmitted:
    return e.TurnAdmitted(
        session=e.SessionId(name),
        turn=1,
        attempt=1,
        mode="create",
        type="text",
        model="mistral",
        waited_ms=0,
        estimated_ms=0,
        reason="1 free",
        decided_seq=1,
        decided_at_ms=0,
    )


def taken(broker: Broker, now_ms: int) -> list[tuple[str, str]]:
    """Hand out all that can be, each GPU pulling again as a runner does."""
    found: list[tuple[str, str]] = []
    while (given := broker.hand_out(WORK, now_ms)) is not None:
        gpu, event = given
        gpu.bound[event.session] = None
        broker.pull(gpu, now_ms)
        found.append((event.session, gpu.offer.gpu))
    return found


def test_the_emptiest_takes_and_of_equals_who_asked_first() -> None:
    broker, floor = Broker(), gpus(2, 0, 1)
    for gpu in floor:
        broker.pull(gpu, 0)
    for name in "abcd":
        broker.put(task(name))
    assert taken(broker, 1) == [
        ("a", "a100-80-1"),
        ("b", "a100-80-2"),
        ("c", "a100-80-1"),
        ("d", "a100-80-0"),
    ]


def test_a_pull_says_what_was_held_when_it_was_sent_until_it_expires() -> None:
    broker, (full, empty) = Broker(), gpus(3, 2)
    broker.pull(full, 0)
    broker.pull(empty, 0)
    full.bound.clear()
    broker.pull(full, 100)  # one is out already
    broker.put(task("a"))
    assert taken(broker, 200) == [("a", "a100-80-1")]
    broker.put(task("b"))
    assert taken(broker, EXPIRES_MS) == [("b", "a100-80-0")]  # sent anew, empty


def test_nobody_takes_beyond_its_slots_or_of_another_workload() -> None:
    broker, (full, other) = Broker(), gpus(4, 0)
    broker.pull(full, 0)
    broker.pull(other, 0)
    other.serving = e.Workload("create", "text", "smollm2")
    broker.put(task("a"))
    assert taken(broker, 1) == []
    full.bound.popitem()
    broker.pull(full, 2)
    assert taken(broker, 3) == [("a", "a100-80-0")]
    broker.put(task("b"))
    assert taken(broker, 10 * EXPIRES_MS) == []
