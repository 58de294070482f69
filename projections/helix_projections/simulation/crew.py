"""Simulations at once: a process for each core, which keeps the arrivals and is handed one job after the other."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from helix_es.core.errors import HelixError

Job = TypeVar("Job")
Result = TypeVar("Result")

Begin = Callable[[], Callable[[Job], Result]]
"""Called once in each process, so it must be picklable; what it returns is called with each job."""
Told = Callable[[int, int], None]
"""How many are done, of how many."""

_END_S = 5.0  # a process that was told to end and does not is killed after this


class SimulationFailed(HelixError):
    """A simulation raised, or its process ended on its own; the text says which and what it said."""

    code = "simulation_failed"


class Crew(Generic[Job, Result]):
    """Use it as a context: its processes end with it, whatever happened, and when this process dies."""

    def __init__(self, begin: Begin[Job, Result], processes: int) -> None:
        """`processes` 1: everything is done in this one."""
        self._begin = begin
        self._wanted = processes
        self._here: Callable[[Job], Result] | None = None
        self._members: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Crew[Job, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._members.items():
            connection.close()
            process.terminate()
        for process in self._members.values():
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._members.clear()

    def run(self, jobs: Sequence[Job], told: Told = lambda done, total: None) -> list[Result]:
        """Return what becomes of each job, in their order, whoever was first. Raises SimulationFailed."""
        if min(self._wanted, len(jobs)) <= 1 and not self._members:
            return list(self._alone(jobs, told))
        self._hire(min(self._wanted, len(jobs)))
        return self._shared(jobs, told)

    def _alone(self, jobs: Sequence[Job], told: Told) -> Iterator[Result]:
        if self._here is None:
            self._here = self._begin()
        for number, job in enumerate(jobs, start=1):
            yield self._here(job)
            told(number, len(jobs))

    def _hire(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of this process
        with _deaf():
            while len(self._members) < count:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, self._begin), daemon=True)
                process.start()
                theirs.close()
                self._members[ours] = process

    def _shared(self, jobs: Sequence[Job], told: Told) -> list[Result]:
        results: dict[int, Result] = {}
        waiting = iter(enumerate(jobs))
        busy: dict[Connection, int] = {}
        for connection in self._members:
            self._hand(connection, waiting, busy)
        while busy:
            for ready in wait(list(busy)):
                free: Any = ready
                number = busy.pop(free)
                results[number] = self._result(free, jobs[number])
                self._hand(free, waiting, busy)
                told(len(results), len(jobs))
        return [results[number] for number in range(len(jobs))]

    def _hand(
        self, connection: Connection, waiting: Iterator[tuple[int, Job]], busy: dict[Connection, int]
    ) -> None:
        for number, job in waiting:
            try:
                connection.send(job)
            except OSError as error:
                raise self._gone(connection, job) from error
            busy[connection] = number
            return

    def _result(self, connection: Connection, job: Job) -> Result:
        try:
            good, result = connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone(connection, job) from error
        if not good:
            raise SimulationFailed(f"{job}: {result}")
        return result  # type: ignore[no-any-return]

    def _gone(self, connection: Connection, job: Job) -> SimulationFailed:
        process = self._members[connection]
        process.join(_END_S)
        return SimulationFailed(
            f"{job}: its process ended with {process.exitcode}; if memory ran out, try --processes 1"
        )


@contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that are started within ignore Ctrl-C: this one hears it and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, begin: Begin[Job, Result]) -> None:
    """Do jobs until the other end is closed, as it is when that process dies."""
    try:
        work = begin()
        gc.freeze()  # the arrivals stay: no collection need look at them
        while True:
            job = connection.recv()
            try:
                answer: tuple[bool, Any] = (True, work(job))
            except HelixError as error:
                answer = (False, str(error))
            except (
                Exception
            ):  # whatever it is, the other end must hear of it: nobody reads this process's stderr
                answer = (False, traceback.format_exc(limit=-3).replace("\n", " "))
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
