"""`make chaos SEED=1 TURNS=2000`: run the shop, let the crowd in, strike, wait for calm, prove."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from itertools import islice
from pathlib import Path

import msgspec
import uvloop

from helix_es.jetstream.client import Connection, NatsSettings, connect
from tests.chaos import report
from tests.chaos.collect import Reader, load, recorded, save
from tests.chaos.crowd import Crowd
from tests.chaos.figures import figures
from tests.chaos.lives import Lives
from tests.chaos.plan import faults
from tests.chaos.processes import now_ms
from tests.chaos.proof import prove
from tests.chaos.replayed import replayed
from tests.chaos.shop import Shop
from tests.chaos.strikes import Strikes
from tests.chaos.told import Run
from tests.chaos.visits import visit
from tests.chaos.waiting import until

FOLDER = Path("var/chaos").resolve()
PLANNED = 100  # faults that --plan shows: five minutes
CALM_S = 180.0  # after the last fault, until no turn may be open any more
RUN_S = 1800.0
SAY_S = 10.0
STOPPED = 130  # as a shell says it of Ctrl-C


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Return the exit code: 0 only if the proof holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2000, help="acknowledged ones, at least")
    parser.add_argument("--plan", action="store_true", help="print the faults of the seed and end")
    parser.add_argument("--keep", action="store_true", help="keep the broker's data")
    parser.add_argument("--prove", action="store_true", help="only prove again, from the log of the last run")
    given = parser.parse_args()
    if given.plan:
        print("\n".join(fault.words for fault in islice(faults(given.seed), PLANNED)))
        return 0
    folder = FOLDER / str(given.seed)
    if not given.prove:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve(given.seed, given.turns, folder))
        except (KeyboardInterrupt, asyncio.CancelledError):
            say("stopped; nothing was proved")
            return STOPPED
        except TimeoutError as error:
            say(f"{error or 'it took too long'}; the logs are in {folder}/logs")
            return 1
        finally:
            if not given.keep:
                shutil.rmtree(folder / "data", ignore_errors=True)
    return judge(folder)


def judge(folder: Path) -> int:
    """Prove what the files in `folder` say, print the report, return the exit code."""
    run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    records = list(recorded(load(folder / "log.jsonl")))
    beats = list(recorded(load(folder / "beats.jsonl")))
    proof = prove(records, run.told)
    proof.violations.extend(replayed(records))
    found = figures(run, records, beats, proof)
    report.write(run, found, proof, folder)
    report.show(run, found, proof, records)
    return 1 if proof.violations else 0


async def serve(seed: int, turns: int, folder: Path) -> None:
    """Do the run and leave log.jsonl, beats.jsonl and run.json in `folder`; nothing of it stays running."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    shop = Shop(folder, seed)
    try:
        async with asyncio.timeout(RUN_S):
            await shop.start()
            say(f"the shop is up: {len(shop.all)} processes; {turns} turns, seed {seed}")
            connection = await connect(NatsSettings(url=shop.cluster.url, name="chaos"))
            try:
                await _storm(shop, Run(seed=seed, turns=turns), connection, folder)
            finally:
                await connection.close()
    finally:
        await shop.kill()


async def _storm(shop: Shop, run: Run, connection: Connection, folder: Path) -> None:
    strikes = Strikes(shop, faults(run.seed))
    crowd = Crowd(shop.urls, lambda number: visit(run.seed, number))
    run.began_ms = now_ms()
    async with asyncio.TaskGroup() as group:
        coming = group.create_task(crowd.run())
        striking = group.create_task(strikes.run())
        telling = group.create_task(_tell(crowd, strikes))

        async def enough() -> bool:
            return len(crowd.told.acks) >= run.turns and strikes.dealt.is_set()

        await until(enough, RUN_S)
        crowd.stop()
        strikes.stop()
        await striking
        run.calm_ms = now_ms()
        say("the last fault is over, everything is up; waiting for open turns")
        await coming
        telling.cancel()
    reader, lives = Reader(connection, "LOG"), Lives()

    async def calm() -> bool:
        for record in recorded(await reader.read()):
            lives.apply(record)
        return not lives.open

    if not await until(calm, CALM_S, every_s=1.0):
        say(f"{len(lives.open)} turns are still open after {CALM_S:g} s")
    run.ended_ms = now_ms()
    run.told, run.strikes, run.endings = crowd.told, strikes.done, shop.endings
    run.postponed = strikes.postponed
    save(await reader.read_all(), folder / "log.jsonl")
    save(await Reader(connection, "BEATS", "beat.scheduler").read_all(), folder / "beats.jsonl")
    (folder / "run.json").write_bytes(msgspec.json.encode(run))


async def _tell(crowd: Crowd, strikes: Strikes) -> None:
    while True:
        await asyncio.sleep(SAY_S)
        told = crowd.told
        heard = sum(stream.state != "" for stream in told.streams)
        last = f"{strikes.done[-1].action} {strikes.done[-1].process}" if strikes.done else "none"
        say(f"{len(told.acks)} acknowledged, {heard} ended, {len(strikes.done)} faults, the last: {last}")


if __name__ == "__main__":
    raise SystemExit(main())
