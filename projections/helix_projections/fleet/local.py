"""Provider `local`: a GPU is a runner process on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from helix_projections.fleet.children import start
from helix_projections.fleet.provider import Gpus, ProviderError, Standing
from helix_projections.fleet.staffing import Place, Plan, plan

log = structlog.get_logger(__name__)


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take, seconds."""

    drain_s: float = 5.0
    """Between SIGTERM and its end a runner lets its turns end for so long …"""
    stop_s: float = 8.0
    """… and then has so long to leave."""
    grace_s: float = 60.0
    """A surplus that is older than this is ended, as far as it holds nobody."""
    gone_s: float = 5.0
    """A runner whose GPU has gone from the log has so long to end, or to join again, before it does not count."""
    restart_s: float = 0.25
    """Between a death and the next life, doubled for each death in quick succession."""
    most_restart_s: float = 10.0
    steady_s: float = 20.0
    """A life that long forgives the deaths before."""


USUAL = Times()


class Staff(msgspec.Struct, frozen=True, kw_only=True):
    """How the runners of a pool are started."""

    folder: Path
    """Their logs, and `pids.json`, by which a later fleet process finds what this one had to leave behind."""
    name: Callable[[int], str]
    """index -> name of the GPU."""
    command: Callable[[str], list[str]]
    """Name of the GPU -> command of its runner."""
    env: Mapping[str, str]
    most: int


class _Runner:
    def __init__(self, gpu: str, process: asyncio.subprocess.Process, begun_s: float, *, stale: bool) -> None:
        self.gpu = gpu
        self.process = process
        self.begun_s = begun_s
        self.kill_s: float | None = None
        """When it is killed: set when it is told to end."""
        self._stale = stale  # what the log says under its name is about the process before it
        self._seen = False
        self.gone_s: float | None = None
        """Since when its GPU, which was in the log, is not any more."""

    def look(self, standing: Standing | None, now_s: float) -> None:
        """Note whether the log knows its GPU."""
        if standing is not None:
            self._seen, self.gone_s = not self._stale, None
        elif self._seen and self.gone_s is None:
            self.gone_s = now_s
        else:
            self._stale = False


class Local:
    """The runners of one pool. `wake` is called when one of them ended."""

    def __init__(
        self,
        staff: Staff,
        wake: Callable[[], None],
        times: Times = USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._staff = staff
        self._wake = wake
        self._times = times
        self._clock = clock
        self._runners: dict[str, _Runner] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._gpus: Gpus = {}
        self._died: list[str] = []  # to be started again under the same name, which sets free what they held
        self._pause_s = 0.0
        self._start_s = 0.0
        self._surplus_s: float | None = None
        self._closing = False

    async def present(self) -> int | None:
        """Return how many processes live."""
        return len(self._runners)

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        """Start what is missing, end what is too much; see `Provider.make`."""
        self._gpus, now_s = gpus, self._clock()
        planned = plan(size, self._places(now_s), most=self._staff.most)
        waits = self._end_surplus(planned, now_s) + self._kill_overdue(now_s) + self._going(now_s)
        if not planned.start:
            self._died.clear()
        elif now_s < self._start_s:
            waits.append(self._start_s - now_s)
        else:
            for _ in range(planned.start):
                await self._start()
        return min(waits, default=None)

    def _end_surplus(self, planned: Plan, now_s: float) -> list[float]:
        """End what should have left by itself long ago; return how much time it still has."""
        if not planned.surplus:
            self._surplus_s = None
            return []
        if self._surplus_s is None:
            self._surplus_s = now_s
        left_s = self._surplus_s + self._times.grace_s - now_s
        if left_s > 0:
            return [left_s]
        for gpu in planned.end:
            self._end(self._runners[gpu])
        return []

    def _places(self, now_s: float) -> list[Place]:
        found = []
        for gpu, runner in self._runners.items():
            standing = self._gpus.get(gpu)
            runner.look(standing, now_s)
            gone = runner.gone_s is not None and now_s - runner.gone_s >= self._times.gone_s
            found.append(Place(gpu=gpu, standing=standing, gone=gone, ending=runner.kill_s is not None))
        return found

    def _going(self, now_s: float) -> list[float]:
        """Return when those count as gone whose GPU has just gone from the log."""
        since = [runner.gone_s for runner in self._runners.values() if runner.gone_s is not None]
        return [left_s for gone_s in since if (left_s := gone_s + self._times.gone_s - now_s) > 0]

    # -- one process

    async def _start(self) -> None:
        gpu = self._died.pop(0) if self._died else self._free_name()
        try:
            process = await start(
                self._staff.command(gpu), self._staff.folder / f"{gpu}.log", self._staff.env, append=True
            )
        except ProviderError:
            self._died.append(gpu)
            raise
        self._runners[gpu] = runner = _Runner(gpu, process, self._clock(), stale=gpu in self._gpus)
        self._write_pids()
        watch = asyncio.create_task(self._watch(runner))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        log.info("runner_started", gpu=gpu, pid=process.pid)

    def _free_name(self) -> str:
        """A name that nobody has now. One that the log still knows would be taken for what it knows of it."""
        index = 0
        while (name := self._staff.name(index)) in self._runners or name in self._gpus:
            index += 1
        return name

    async def _watch(self, runner: _Runner) -> None:
        code = await runner.process.wait()
        del self._runners[runner.gpu]
        self._write_pids()
        if self._closing:
            return
        now_s = self._clock()
        left = code == 0 or runner.kill_s is not None
        if left:
            log.info("runner_ended", gpu=runner.gpu, code=code)
        else:
            log.warning("runner_died", gpu=runner.gpu, code=code)
        if not left and self._gpus.get(runner.gpu) not in ("draining", "drained"):
            self._died.append(runner.gpu)
        steady = now_s - runner.begun_s > self._times.steady_s
        times = self._times
        self._pause_s = 0.0 if steady else min(times.most_restart_s, max(times.restart_s, 2 * self._pause_s))
        self._start_s = now_s + self._pause_s
        self._wake()

    def _end(self, runner: _Runner) -> None:
        log.info("runner_told_to_end", gpu=runner.gpu)
        runner.kill_s = self._clock() + self._times.drain_s + self._times.stop_s
        if runner.process.returncode is None:
            runner.process.terminate()

    def _kill_overdue(self, now_s: float) -> list[float]:
        """Kill those that were told to end and did not; return how long the others have."""
        left = []
        for runner in self._runners.values():
            if runner.kill_s is None:
                continue
            if now_s < runner.kill_s:
                left.append(runner.kill_s - now_s)
            elif runner.process.returncode is None:
                log.warning("runner_killed", gpu=runner.gpu)
                runner.process.kill()
        return left

    def _write_pids(self) -> None:
        pids = {gpu: runner.process.pid for gpu, runner in self._runners.items()}
        fresh = self._staff.folder / "pids.json.new"
        fresh.write_bytes(msgspec.json.encode(pids))
        fresh.replace(self._staff.folder / "pids.json")

    async def close(self) -> None:
        """End all of them together: SIGTERM, their time to drain, then SIGKILL."""
        self._closing = True
        for runner in self._runners.values():
            if runner.kill_s is None:
                self._end(runner)
        if self._watches:
            await asyncio.wait(self._watches, timeout=self._times.drain_s + self._times.stop_s)
        for runner in self._runners.values():
            log.warning("runner_killed", gpu=runner.gpu)
            runner.process.kill()
        await asyncio.gather(*self._watches)
        (self._staff.folder / "pids.json").unlink(missing_ok=True)
