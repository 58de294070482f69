"""Simulated shops for tests: seeded arrivals, and what happened on each GPU by the log alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from helix_es.core import events as e
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.shop import Shop
from helix_projections.simulation.traces import mooncake

TRACE = Path(__file__).parents[2] / "data/traces/mooncake_conversation_sessions.csv"
WORK = e.Workload("create", "text", "mistral")
OPEN_MS = 20_000  # the GPUs of the default service are ready by then


def arrivals(seed: int, sessions: int, gap_ms: int) -> list[Arrival]:
    """Return turns of `sessions` conversations that begin every `gap_ms` on average."""
    random, found, at_ms = Random(seed), [], 0
    for n in range(sessions):
        at_ms += round(random.expovariate(1 / gap_ms))
        said_ms, context = at_ms, 0
        for turn in range(1, random.choice([1, 1, 2, 4]) + 1):
            prompt, output = context + random.randint(10, 3000), random.randint(1, 600)
            found.append(
                Arrival(
                    at_ms=said_ms,
                    session=f"s{n}",
                    turn=turn,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    known_tokens=context,
                )
            )
            context, said_ms = prompt + output, said_ms + random.randint(0, 25_000)
    return sorted(found, key=lambda each: each.at_ms)


def simulated(
    turns: list[Arrival] | Iterator[Arrival],
    gpus: int,
    slots: int,
    *,
    owners: int = 0,
    policy: e.Policy | None = None,
    open_ms: int = OPEN_MS,
) -> Shop:
    """Return a shop in which all of `turns` happened."""
    scenario = Scenario(
        policy=policy or e.Policy(),
        offers=uniform(gpus, WORK, slots=slots),
        workload=WORK,
        owners=owners,
        open_ms=open_ms,
    )
    shop = Shop(scenario, turns)
    shop.run()
    return shop


def mooncake_shop(gpus: int, slots: int, *, owners: int = 1, minutes: int | None = None) -> Shop:
    """Return a shop after the first `minutes` of the Mooncake trace, None: all of it."""
    until_ms = None if minutes is None else minutes * 60_000
    return simulated(mooncake(TRACE, until_ms=until_ms), gpus, slots, owners=owners)


def most_held(records: list[e.Recorded]) -> dict[str, int]:
    """Return the most sessions that each GPU ever held; a turn of a session elsewhere than on its GPU is an error."""
    held: dict[str, set[str]] = {}
    where: dict[str, str] = {}
    most: dict[str, int] = {}
    for record in records:
        match record.event:
            case e.TurnStarted(gpu=gpu, session=session):
                assert where.setdefault(session, gpu) == gpu
                held.setdefault(gpu, set()).add(session)
                most[gpu] = max(most.get(gpu, 0), len(held[gpu]))
            case e.TurnContinued(gpu=gpu, session=session):
                assert where[session] == gpu
            case e.SessionReleased(gpu=gpu, session=session):
                assert where.pop(session) == gpu
                held[gpu].remove(session)
            case _:
                pass
    return most
