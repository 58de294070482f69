"""A local provider with fake runners, and a clock that stands until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from helix_projections.fleet.keeper import Keeper, Patience
from helix_projections.fleet.local import Local, Staff, Times
from helix_projections.fleet.provider import Standing
from helix_projections.fleet.sizes import Order
from tests.projections.fleet.stage import WAIT_S, Stage, command, staged

QUICK = Times(drain_s=0.2, stop_s=5, restart_s=0.01, most_restart_s=0.05)


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Pool:
    """A local provider with a stage for its runners."""

    def __init__(self, folder: Path, stage: Stage, times: Times, clock: Clock | None) -> None:
        self.folder = folder
        self.stage = stage
        self.woken = asyncio.Event()
        staff = Staff(
            folder=folder,
            name=lambda index: f"n-burst-{index}",
            command=lambda gpu: command(stage.socket, gpu),
            env={"HELIX_NATS_URL": "nats://here"},
            most=4,
        )
        more = {} if clock is None else {"clock": clock}
        self.local = Local(staff, self._wake, times, **more)
        self.keeper = Keeper("burst", self.local, Patience(first_s=0.01, most_s=0.02))

    def _wake(self) -> None:
        self.woken.set()
        self.keeper.wake()

    async def death(self) -> None:
        """Wait until the provider has seen a process end."""
        await asyncio.wait_for(self.woken.wait(), WAIT_S)
        self.woken.clear()

    def order(self, size: int, **gpus: Standing) -> None:
        """Order a size; `n0="serving"` says what the log says of the first."""
        self.keeper.offer(
            Order(size=size, gpus={f"n-burst-{name.removeprefix('n')}": each for name, each in gpus.items()})
        )


@asynccontextmanager
async def pool(folder: Path, *, times: Times = QUICK, clock: Clock | None = None) -> AsyncIterator[Pool]:
    """Give a pool; whoever is left of it is ended."""
    async with staged(folder) as stage:
        made = Pool(folder, stage, times, clock)
        try:
            yield made
        finally:
            await made.local.close()


@asynccontextmanager
async def kept(folder: Path, *, times: Times = QUICK) -> AsyncIterator[Pool]:
    """Give a pool that a keeper keeps."""
    async with pool(folder, times=times) as made:
        keeping = asyncio.create_task(made.keeper.run())
        try:
            yield made
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
