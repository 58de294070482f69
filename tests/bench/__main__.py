"""`make bench`: every number that was promised, measured side by side in one run, as a table."""

from __future__ import annotations

import asyncio
import sys

from rich.console import Console
from rich.table import Table

from helix_runners.engine.open import EngineSettings, open_engine
from tests.bench import adapters, dispatch, fold, http_worker, shop_floor, upload
from tests.bench.analytics import analytics_rows
from tests.bench.engine_bench import measure_second_turn, measure_stall, measure_throughput
from tests.bench.estimates import estimate_rows
from tests.bench.peers.report import notes
from tests.bench.peers.report import table as peers_table
from tests.bench.peers.sides import OURS, PEERS, THEIRS, measure
from tests.bench.replays import replay_rows
from tests.bench.row import Row
from tests.bench.sweeps import sweep_rows


def dispatch_rows() -> list[Row]:
    """From the HTTP request to the task in a runner's hand."""
    found = asyncio.run(dispatch.measure())
    rows = []
    for what, latency, most in (("continue", found.proceed, 2.5), ("create", found.create, 4.0)):
        ratio = latency.p50 / found.floor.p50
        shown = f"{latency.p50:.2f} ms = {ratio:.2f} × the floor of {found.floor.p50:.2f} ms"
        rows.append(
            Row(f"{what}: HTTP request → runner holds the task, p50", shown, f"≤ {most} ×", ratio <= most)
        )
    p99 = found.proceed.p99
    rows.append(Row("continue, p99", f"{p99:.1f} ms", "≤ 20 ms", p99 <= 20))
    return rows


def worker_rows() -> list[Row]:
    """A worker that speaks only HTTP, against the native runner."""
    found = asyncio.run(http_worker.measure())
    ratio = found.http.p50 / found.native.p50
    shown = f"{found.http.p50:.2f} ms = {ratio:.2f} × the native pull's {found.native.p50:.2f} ms"
    return [Row("create: HTTP request → started task in a long poll's hand, p50", shown, "≤ 2 ×", ratio <= 2)]


def file_rows() -> list[Row]:
    """A large dataset through the API."""
    found = asyncio.run(upload.measure())
    shown = f"{found.grown_mib:.1f} MiB in {found.seconds:.1f} s"
    return [
        Row(
            "64 MiB dataset uploaded: the API's resident memory grows by",
            shown,
            "< 100 MiB",
            found.grown_mib < 100,
        )
    ]


def adapter_rows() -> list[Row]:
    """Adapters mixed in one batch."""
    found = asyncio.run(adapters.measure())
    shown = f"{found.four:.0f} tokens/s = {found.ratio:.2f} × one adapter ({found.one:.0f}; none {found.none:.0f})"
    return [Row("4 sessions with 4 adapters in one batch (float32)", shown, "≥ 0.7 ×", found.ratio >= 0.7)]


def fold_rows() -> list[Row]:
    """Folding and deciding."""
    memory, server = fold.from_memory(), asyncio.run(fold.from_server())
    small, large = fold.decision_cost(100, 1_000), fold.decision_cost(10_000, 100_000)
    ratio = large / small
    return [
        Row("fold from memory", f"{memory:,.0f} events/s", "≥ 150,000", memory >= 150_000),
        Row("occupancy rebuilt from JetStream", f"{server:,.0f} events/s", "≥ 60,000", server >= 60_000),
        Row(
            "a decision at 10,000 GPUs and 100,000 sessions",
            f"{large:.1f} µs = {ratio:.2f} × that at 100 and 1,000",
            "≤ 1.5 ×",
            ratio <= 1.5,
        ),
    ]


def floor_rows() -> list[Row]:
    """The whole floor under load, and how long failures last."""
    load = asyncio.run(shop_floor.loaded("always"))
    lasted = asyncio.run(shop_floor.recovered())
    fleet = f"{shop_floor.GPUS:,} simulated GPUs × {shop_floor.SLOTS} slots"
    return [
        Row(
            f"{fleet}, one scheduler: sessions started, end to end",
            f"{load.admissions:.0f}/s of {shop_floor.OFFERED}/s offered",
            "≥ 300/s",
            load.admissions >= 300,
        ),
        Row(
            "the same at 150/s: queued → admitted, p99",
            f"{load.half_p99_ms:.0f} ms (p50 {load.half_p50_ms:.0f})",
            "≤ 100 ms",
            load.half_p99_ms <= 100,
        ),
        Row(
            "kill -9 of a runner: its session has answered the next turn after",
            f"{lasted.runner_s:.1f} s",
            "≤ 5 s",
            lasted.runner_s <= 5,
        ),
        Row(
            "kill -9 of the acting scheduler: the standby admits after",
            f"{lasted.scheduler_s:.1f} s",
            "≤ 2 s",
            lasted.scheduler_s <= 2,
        ),
    ]


async def engine_rows(dtype: str) -> list[Row]:
    """The real model, many sessions at once."""
    engine = await asyncio.to_thread(open_engine, EngineSettings(dtype=dtype))
    try:
        throughput = await measure_throughput(engine)
        second = await measure_second_turn(engine)
        stall = await measure_stall(engine)
    finally:
        await engine.close()
    return [
        Row(
            f"8 sessions decoding together ({dtype})",
            f"{throughput.together:.0f} tokens/s = {throughput.ratio:.1f} × one alone",
            "≥ 5 ×",
            throughput.ratio >= 5,
        ),
        Row(
            "the slowest of them against the fastest",
            f"{throughput.slowest_over_fastest:.2f}",
            "≥ 0.5",
            throughput.slowest_over_fastest >= 0.5,
        ),
        Row(
            f"second turn of {second.prompt_tokens} tokens, first token ({dtype})",
            f"{second.kept_s:.3f} s against {second.cold_s:.2f} s = 1/{second.ratio:.0f}",
            "≤ 1/15",
            second.ratio >= 15,
        ),
        Row(
            f"longest gap of 4 streams while {stall.prompt_tokens} tokens arrive",
            f"{stall.worst_gap_s:.2f} s",
            "≤ 0.8 s",
            stall.worst_gap_s <= 0.8,
        ),
    ]


def main() -> None:
    """Measure, print, exit 1 if a promise is not kept."""
    rows = dispatch_rows() + worker_rows() + file_rows() + fold_rows() + floor_rows() + estimate_rows()
    rows += adapter_rows() + analytics_rows() + replay_rows() + sweep_rows()
    for dtype in ("float32", "bfloat16"):
        rows += asyncio.run(engine_rows(dtype))
    table = Table("measured", "found", "promised", "", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.what, row.found, row.promised, "kept" if row.kept else "NOT REACHED")
    console = Console(width=170)
    console.print(table)
    if PEERS.exists():  # `make bench-peers` brings them
        ran = measure(OURS + THEIRS)
        console.print(peers_table(ran))
        print(*notes(ran), sep="\n")
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    main()
