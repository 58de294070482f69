"""What the tables must say, computed the slow and simple way: every session and every prefix by itself."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from helix_es.core import events as e
from helix_es.core.history import Session, _fits, evolve
from helix_es.core.occupancy import Occupancy
from helix_es.core.session import next_phase
from helix_es.core.subjects import about

Told = dict[str, Any]


def sessions(records: list[e.Recorded]) -> dict[str, Session]:
    """Return every session that was created, folded from its own facts."""
    found: dict[str, Session] = {}
    for record in records:
        root, name = about(record.subject)
        if root == "session":
            found[name] = evolve(found.get(name, Session(session=e.SessionId(name))), record)
    return found


def happened(records: list[e.Recorded]) -> dict[int, bool]:
    """Return of every fact about a session whether its own history lets it happen."""
    found: dict[int, bool] = {}
    states: dict[str, Session] = {}
    for record in records:
        root, name = about(record.subject)
        if root != "session":
            continue
        state = states.get(name, Session(session=e.SessionId(name)))
        event = record.event
        found[record.seq] = (
            event is not None and next_phase(state.phase, event) is not None and _fits(state, event)
        )
        states[name] = evolve(state, record)
    return found


def intervals(records: list[e.Recorded]) -> list[tuple[Any, ...]]:
    """Return what each GPU held from when to when, by looking at all of them after every record."""
    state = Occupancy()
    open_: dict[str, tuple[Any, ...]] = {}
    done = []
    for record in records:
        state.apply(record)
        now = {
            name: (
                gpu.incarnation,
                "draining" if gpu.draining else gpu.state,
                gpu.model,
                gpu.slots,
                len(gpu.sessions),
            )
            for name, gpu in state.gpus.items()
        }
        for name in sorted({*open_, *now}):
            was = open_.get(name)
            if was is not None and was[1] != now.get(name):
                done.append((name, *was[1], was[0], record.at_ms))
                del open_[name]
            if name in now and name not in open_:
                open_[name] = (record.at_ms, now[name])
    return sorted([*done, *((name, *told, since, None) for name, (since, told) in open_.items())], key=repr)


def passed(records: list[e.Recorded]) -> dict[int, int]:
    """Return of every admission how many came to its queue after the turn and were admitted before it."""
    found: dict[int, int] = {}
    came: dict[str, int] = {}
    admitted: dict[e.Workload, list[int]] = defaultdict(list)
    state = Occupancy()
    for record in records:
        event = record.event
        before = {name: seat.phase for name, seat in state.seats.items()}
        misfits = state.misfits
        state.apply(record)
        if isinstance(event, e.TurnAdmitted) and event.session in before and state.misfits == misfits:
            others = admitted[e.Workload(event.mode, event.type, event.model)]
            found[record.seq] = sum(1 for each in others if each > came[event.session])
            others.append(came[event.session])
        for name, seat in state.seats.items():
            if seat.phase == "queued" and before.get(name) != "queued":
                came[name] = record.seq
    return found


def held_ms(records: list[e.Recorded]) -> dict[str, int]:
    """Return for how long each session held slots, up to its last release."""
    since: dict[str, int] = {}
    total: dict[str, int] = defaultdict(int)
    state = Occupancy()
    for record in records:
        before = {name: seat.gpu for name, seat in state.seats.items()}
        state.apply(record)
        after = {name: seat.gpu for name, seat in state.seats.items()}
        for name in {*before, *after}:
            had, has = before.get(name), after.get(name)
            if had is None and has is not None:
                since[name] = record.at_ms
            elif had is not None and has is None:
                total[name] += record.at_ms - since.pop(name)
    return total
