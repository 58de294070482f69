"""Heartbeats: one row a GPU and window, the same whenever it is committed; thinner as they grow old."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.jetstream.follow import Message
from helix_projections.analytics.pulse import DAY_MS, Pulse
from helix_projections.analytics.rows import Rows
from helix_projections.analytics.store import Commit, Store
from tests.projections.analytics.kit import contents, in_memory, rows

START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
MINUTE_MS = 60_000


def beat(seq: int, at_ms: int, gpu: str = "n0-0", **more: Any) -> Message:
    about = {
        "incarnation": "i",
        "memory_total_bytes": 80,
        "memory_used_bytes": 40,
        "utilisation": 0.5,
        **more,
    }
    event = e.GpuHeartbeat(gpu=e.GpuId(gpu), **about)
    return Message(seq, at_ms, f"gpu.{gpu}.heartbeat", None, encode(event))


def tick(seq: int, at_ms: int) -> Message:
    """The scheduler's beat: it moves the clock and has no row."""
    event = e.SchedulerBeat(scheduler="s", active=True, seq=1)
    return Message(seq, at_ms, "beat.scheduler", None, encode(event))


def stored(store: Store, pulse: Pulse, messages: list[Message]) -> None:
    for message in messages:
        pulse.apply(message)
    store.write(Commit(Rows(), pulse.take()))


def test_a_window_becomes_a_row_when_it_is_over() -> None:
    store, pulse = in_memory(), Pulse()
    seen = [
        beat(1, START_MS, utilisation=0.2, temperature_c=50),
        beat(2, START_MS + 1000, power_w=300, slots_used=3),
    ]
    stored(store, pulse, [*seen, beat(3, START_MS + 9_999, "n1-0", utilisation=1.0, stalled_ms=7)])
    assert rows(store, "FROM heartbeats") == []
    assert store.reached("BEATS") == (0, 0), "the present window is read again after a restart"
    stored(store, pulse, [tick(4, START_MS + 10_000)])
    first, second = rows(store, "FROM heartbeats ORDER BY gpu")
    assert (first["span_s"], first["samples"], first["utilisation"], first["utilisation_max"]) == (
        10,
        2,
        0.35,
        0.5,
    )
    assert (first["temperature_c"], first["power_w"], first["slots_used"]) == (50.0, 300.0, 1.5)
    assert (second["gpu"], second["utilisation_max"], second["stalled_ms"]) == ("n1-0", 1.0, 7)
    assert store.reached("BEATS") == (3, START_MS + 9_999)


def test_each_life_of_a_gpu_has_rows_of_its_own() -> None:
    store = in_memory()
    lives = [beat(1, START_MS), beat(2, START_MS + 1, incarnation="j"), tick(3, START_MS + 20_000)]
    stored(store, Pulse(), lives)
    assert [row["incarnation"] for row in rows(store, "FROM heartbeats")] == ["i", "j"]


def test_what_comes_late_counts_to_the_present_window() -> None:
    store = in_memory()
    late = [beat(1, START_MS + 10_000), beat(2, START_MS + 9_000), tick(3, START_MS + 20_000)]
    stored(store, Pulse(), late)
    assert [row["samples"] for row in rows(store, "FROM heartbeats")] == [2]


def test_rubbish_is_set_aside_with_its_window() -> None:
    store = in_memory()
    bad = Message(2, START_MS + 5, "gpu.n0-0.heartbeat", None, b"no heartbeat")
    stored(store, Pulse(), [beat(1, START_MS), bad, tick(3, START_MS + 10_000)])
    (row,) = rows(store, "FROM set_aside")
    assert (row["stream"], row["seq"], row["body"]) == ("BEATS", 2, b"no heartbeat")


def test_heartbeats_that_are_no_text_are_set_aside() -> None:
    store = in_memory()
    whole = beat(1, START_MS).body
    in_a_name, in_a_field_of_others = whole.replace(b'"i"', b'"\xff"'), whole[:-1] + b',"x":"\xff"}'
    bodies = [in_a_name, in_a_field_of_others, whole]
    said = [Message(n, START_MS + n, "gpu.n0-0.heartbeat", None, body) for n, body in enumerate(bodies, 1)]
    stored(store, Pulse(), [*said, tick(4, START_MS + 10_000)])
    assert [row["body"] for row in rows(store, "FROM set_aside ORDER BY seq")] == bodies[:2]
    (row,) = rows(store, "FROM heartbeats")
    assert (row["incarnation"], row["samples"]) == ("i", 2)


def test_measurements_that_no_device_makes_do_no_harm() -> None:
    store = in_memory()
    absurd = beat(1, START_MS, utilisation=1e300, temperature_c=10**30, memory_used_bytes=10**40)
    days_later = tick(2, START_MS + 40 * DAY_MS)
    stored(store, Pulse(), [absurd, days_later, tick(3, START_MS + 41 * DAY_MS)])
    (row,) = rows(store, "FROM heartbeats")
    assert (row["utilisation"], row["temperature_c"], row["memory_used_bytes"]) == (None, None, None)


def two_months() -> list[Message]:
    """A heartbeat a minute of two GPUs on some days, and one of another about every 3 s for an hour."""
    chance = random.Random(3)
    seqs = itertools.count(1)
    made = []
    for day in (0, 1, 29, 30, 31, 60):
        for minute in range(0, 24 * 60, 7):
            at_ms = START_MS + day * DAY_MS + minute * MINUTE_MS
            made.append(
                beat(next(seqs), at_ms, f"n{minute % 2}-0", utilisation=chance.random(), power_w=minute)
            )
    at_ms = START_MS + 61 * DAY_MS
    for _ in range(1200):
        at_ms += chance.randrange(6000)
        made.append(beat(next(seqs), at_ms, "n2-0", utilisation=chance.random()))
    return [*made, tick(next(seqs), at_ms + 10_000), tick(next(seqs), at_ms + 20_000)]


def test_old_rows_are_merged_and_nothing_is_lost_in_them() -> None:
    store = in_memory()
    messages = two_months()
    stored(store, Pulse(), messages)
    spans = rows(
        store, "SELECT span_s, sum(samples)::INT AS n, count(*) AS rows FROM heartbeats GROUP BY 1 ORDER BY 1"
    )
    assert [row["span_s"] for row in spans] == [10, 60, 3600]
    assert sum(row["n"] for row in spans) == len(messages) - 2
    assert spans[-1]["rows"] < spans[-1]["n"] / 3
    (mean,) = rows(store, "SELECT sum(utilisation * samples) / sum(samples) AS mean FROM heartbeats")
    said = [json.loads(m.body)["utilisation"] for m in messages if m.subject != "beat.scheduler"]
    assert abs(mean["mean"] - sum(said) / len(said)) < 1e-5


def test_the_rows_are_the_same_whenever_they_are_committed_and_after_any_restart() -> None:
    messages = two_months()
    whole, cut = in_memory(), in_memory()
    stored(whole, Pulse(), messages)
    chance = random.Random(4)
    while (position := cut.reached("BEATS")[0]) < whole.reached("BEATS")[0]:
        stored(cut, Pulse(), messages[position : position + chance.randrange(1, 400)])
    assert contents(cut) == contents(whole)
