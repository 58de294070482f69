"""A small database of the analytics, made by hand so that every answer can be worked out on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from helix_es.analytics.schema import statements

DAY = "2026-11-24"
AS_OF = f"{DAY}T12:00:00.000Z"
SEQ = 900


def at(clock: str) -> str:
    """Return the instant of that day, as DuckDB reads it."""
    return f"{DAY} {clock}+00"


def insert(connection: duckdb.DuckDBPyConnection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    marks = ", ".join("?" for _ in values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))


def make(path: Path) -> Path:
    """Write the database to `path`."""
    connection = duckdb.connect(path)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(statements())
    fill(connection)
    connection.close()
    return path


def fill(connection: duckdb.DuckDBPyConnection) -> None:
    """Insert everything: three GPUs, four conversations of two owners, a fine-tune."""
    insert(connection, "position", stream="LOG", seq=SEQ, logged_at=at("11:59:59"))
    insert(connection, "position", stream="BEATS", seq=7_000, logged_at=at("12:00:00"))
    _floor(connection)
    _sessions(connection)
    _turns(connection)
    _facts(connection)


def _floor(connection: duckdb.DuckDBPyConnection) -> None:
    chat = {"gpu": "n-0", "incarnation": "i0", "kind": "a100-80", "pool": "default", "purpose": "chat"}
    chat |= {"model": "mistral", "slots": 2}
    spans = (("10:00:00", "10:30:00", 0), ("10:30:00", "11:15:00", 2), ("11:15:00", None, 1))
    for begin, end, held in spans:
        upto = None if end is None else at(end)
        row = {**chat, "state": "ready", "sessions": held, "from_at": at(begin), "to_at": upto}
        insert(connection, "gpu_occupancy", **row)
    bare = {"gpu": "n-1", "incarnation": "i1", "kind": "l4-24", "pool": "burst", "state": "joined"}
    insert(connection, "gpu_occupancy", **bare, slots=0, sessions=0, from_at=at("11:30:00"))
    batch = {"gpu": "n-2", "incarnation": "i2", "kind": "a100-80", "pool": "default", "state": "ready"}
    batch |= {"purpose": "batch", "model": "smollm2", "slots": 1, "sessions": 1}
    insert(connection, "gpu_occupancy", **batch, from_at=at("11:00:00"), to_at=at("11:45:00"))
    for clock, used in (("11:59:40", 0.25), ("11:59:50", 0.75)):
        beat = {"gpu": "n-0", "incarnation": "i0", "utilisation": used, "memory_used_bytes": 2**34}
        insert(connection, "heartbeats", **beat, logged_at=at(clock), span_s=10, samples=10)
    started = {"gpu": "n-0", "kind": "a100-80", "purpose": "chat", "model": "mistral", "reason": "first"}
    insert(
        connection,
        "cold_starts",
        **started,
        seq=3,
        assigned_at=at("09:59:50"),
        ready_at=at("10:00:00"),
        load_ms=8_000,
    )
    insert(connection, "cold_starts", **started, seq=4, assigned_at=at("09:00:00"))


def _sessions(connection: duckdb.DuckDBPyConnection) -> None:
    chats = (("s1", "ann", 1_800_000), ("s2", "ann", 3_600_000), ("s3", "bob", 0), ("s4", "bob", 0))
    for session, owner, held_ms in chats:
        row = {"session": session, "owner": owner, "mode": "create", "type": "text", "model": "mistral"}
        adapter = "tone" if session == "s1" else None
        insert(
            connection,
            "sessions",
            **row,
            adapter=adapter,
            held_ms=held_ms,
            created_at=at("10:29:00"),
            turns=1,
        )
    tune = {"session": "f1", "owner": "bob", "mode": "finetune", "type": "text", "model": "smollm2"}
    insert(connection, "sessions", **tune, name="tone", held_ms=2_700_000, created_at=at("10:59:00"), turns=1)


def _turns(connection: duckdb.DuckDBPyConnection) -> None:
    chat = {"mode": "create", "type": "text", "model": "mistral", "attempts": 1}
    done = {
        **chat,
        "session": "s1",
        "owner": "ann",
        "state": "completed",
        "gpu": "n-0",
        "kind": "a100-80",
        "slots": 2,
        "prompt_tokens": 100,
        "cached_tokens": 50,
        "completion_tokens": 10,
    }
    said = {"said_at": at("10:30:00"), "admitted_at": at("10:30:00"), "started_at": at("10:30:00.100")}
    said |= {"first_token_at": at("10:30:00.500"), "ended_at": at("10:30:05")}
    spent = {"wait_ms": 0, "start_ms": 100, "first_token_ms": 500, "total_ms": 5_000, "compute_ms": 4_900}
    insert(connection, "turns", **done, **said, **spent, turn=1, how="queued", neighbours=1, place=1)
    for turn, clock, first_token_ms in ((2, "10:31", 400), (3, "10:32", 2_000)):
        said = {"said_at": at(f"{clock}:00"), "started_at": at(f"{clock}:00"), "ended_at": at(f"{clock}:04")}
        spent = {"wait_ms": 0, "start_ms": 0, "first_token_ms": first_token_ms, "total_ms": 4_000}
        first = at(f"{clock}:0{first_token_ms / 1000:.1f}")
        row = {**done, **said, **spent, "turn": turn, "how": "continued", "neighbours": 2}
        insert(connection, "turns", **row, first_token_at=first)
    said = {"said_at": at("10:30:10"), "admitted_at": at("10:30:12"), "started_at": at("10:30:12")}
    said |= {"first_token_at": at("10:30:13"), "ended_at": at("10:30:20")}
    spent = {"wait_ms": 2_000, "start_ms": 2_000, "first_token_ms": 3_000, "total_ms": 10_000}
    told = {"estimated_ms": 1_500, "reservation_ms": 500, "reason": "a slot came free", "place": 1}
    row = {**done, **said, **spent, **told, "session": "s2", "turn": 1, "how": "queued", "neighbours": 2}
    insert(connection, "turns", **row)
    asks = {**chat, "owner": "bob", "turn": 1, "how": "queued"}
    insert(connection, "turns", **asks, session="s3", state="queued", said_at=at("11:58:00"), place=2)
    gone = {"said_at": at("11:00:00"), "ended_at": at("11:00:30"), "total_ms": 30_000}
    insert(connection, "turns", **asks, **gone, session="s4", state="cancelled", place=1)
    _finetune(connection)


def _finetune(connection: duckdb.DuckDBPyConnection) -> None:
    row = {"session": "f1", "turn": 1, "owner": "bob", "mode": "finetune", "type": "text", "model": "smollm2"}
    row |= {"how": "queued", "state": "completed", "attempts": 2, "gpu": "n-2", "place": 1, "wait_ms": 10_000}
    row |= {"said_at": at("10:59:50"), "admitted_at": at("11:00:00"), "started_at": at("11:00:00")}
    insert(connection, "turns", **row, ended_at=at("11:45:00"), total_ms=2_710_000, start_ms=10_000)
    for seq, step, loss in ((500, 1, 2.5), (600, 10, 0.5)):
        told = {"session": "f1", "turn": 1, "step": step, "steps": 10, "loss": loss}
        insert(connection, "finetune_steps", **told, seq=seq)


def _facts(connection: duckdb.DuckDBPyConnection) -> None:
    admitted = (
        (11, "10:30:00", "s1", "ann", "create", "mistral", 0, 0, 0),
        (21, "10:30:12", "s2", "ann", "create", "mistral", 2_000, 1_500, 500),
        (31, "11:00:00", "f1", "bob", "finetune", "smollm2", 10_000, 4_000, 4_000),
    )
    for seq, clock, session, owner, mode, model, waited_ms, told_ms, kept_ms in admitted:
        row = {
            "seq": seq,
            "logged_at": at(clock),
            "session": session,
            "owner": owner,
            "mode": mode,
            "model": model,
        }
        insert(
            connection,
            "admissions",
            **row,
            turn=1,
            attempt=1,
            type="text",
            waited_ms=waited_ms,
            estimated_ms=told_ms,
            reservation_ms=kept_ms,
            passed=3 if session == "s2" else 0,
        )
    back = {"session": "f1", "turn": 1, "model": "smollm2", "gpu": "n-3", "reason": "lost"}
    insert(
        connection, "requeues", **back, seq=300, logged_at=at("11:10:00"), attempt=2, error_code="gpu_lost"
    )
    bad = {"stream": "LOG", "seq": 77, "subject": "session.s9.created.text.m", "reason": "not JSON"}
    insert(connection, "set_aside", **bad, logged_at=at("11:20:00"), body=b"{\xff\x00")
    event = {
        "seq": SEQ,
        "logged_at": at("11:59:59"),
        "subject": "session.s3.turn.queued",
        "event": "turn.queued",
    }
    insert(connection, "events", **event, session="s3", turn=1, body='{"type":"turn.queued"}')
