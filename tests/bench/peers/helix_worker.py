"""Helix's worker process: the real runner loop over work that takes no time, or a second if the prompt names it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from pathlib import Path

from helix_es.core.events import GpuId, Workload
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.settings import Settings
from helix_runners.devices import cpu
from helix_runners.loop import Runner
from helix_runners.offer import Offer
from helix_runners.work import Job, Outcome, Output
from tests.bench.dispatch import Nothing
from tests.bench.peers.killing import WORK_S, mark

MODEL = "smollm2"
NO_WORK = "Hello"
SLOTS = 10_000  # as in dispatch.py: sessions stay on their GPU, and none of these is to wait for a slot


class Marking(Nothing):
    """No work; a prompt that names a task notes that it began and takes WORK_S."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks

    async def perform(self, job: Job, output: Output) -> Outcome:
        if job.turn.prompt != NO_WORK:
            mark(self._marks, job.turn.prompt)
            await asyncio.sleep(WORK_S)
        return Outcome(output="done")


async def serve(url: str, gpu: str, marks: Path) -> None:
    """Serve until SIGTERM."""
    connection = await connect(NatsSettings(url=url))
    offer = Offer(
        gpu=GpuId(gpu),
        device=cpu(),
        workloads=[Workload("create", "text", MODEL)],
        models={MODEL: Settings().models[MODEL]},
        slots={MODEL: SLOTS},
    )
    runner = Runner(connection, Marking(marks), offer, new_incarnation=lambda: secrets.token_hex(4))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
    await runner.run()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
