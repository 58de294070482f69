"""A runner's process whose engine hangs in a thread that nothing can end: `python -m tests.runners.hanging URL`."""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from collections.abc import Callable
from typing import Any

from helix_es.cli.output import run
from helix_es.core.events import Workload
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.settings import Sessions, Settings
from helix_runners.main import RunnerOptions, serve
from helix_runners.work import Job, Outcome, Output
from tests.runners.floor import CHAT, GPU, Pretended


class Hanging(Pretended):
    """What a driver does that never answers: the thread cannot be ended, and is no daemon."""

    async def load(self, workload: Workload, model: Any) -> None:
        self._thread = threading.Thread(target=threading.Event().wait, name="hung")
        self._thread.start()
        atexit.register(self._thread.join)

    async def perform(self, job: Job, output: Output) -> Outcome:
        try:
            await asyncio.to_thread(self._thread.join)
        except asyncio.CancelledError:
            while True:  # as a computation that must not go on behind our back
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
        return Outcome()

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.join)


def main(url: str) -> None:
    async def connected(name: str, _: dict[str, Any]) -> Connection:
        return await connect(NatsSettings(url=url, name=name))

    def on_signals(_: Callable[[], None]) -> None:
        """Nobody asks it to stop."""

    settings = Settings(sessions=Sessions(heartbeat_s=0.1))
    options = RunnerOptions(workloads=(CHAT,), gpu=GPU, slots=1, node="box", nats={})
    run(lambda: serve(settings, options, lambda *_: Hanging(), connected, on_signals), fast=True)


if __name__ == "__main__":
    main(sys.argv[1])
