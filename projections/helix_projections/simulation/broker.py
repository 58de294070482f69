"""Simulated tasks: what is admitted goes to the emptiest GPU with room, as the broker's prioritized consumers do.

A GPU has one pull out, which says how full it was when it was sent. Who gives a slot back does not change it; it is
sent anew when it brought a task or has expired. So the emptiest GPU is sometimes the one that was.
"""

from __future__ import annotations

import heapq
from collections import deque

from helix_es.core import events as e
from helix_projections.simulation.gpu import SimulatedGpu

EXPIRES_MS = 2_000  # a runner's pull


class Pull:
    """One GPU's, until it brings something."""

    __slots__ = ("asked", "gpu", "until_ms", "workload")

    def __init__(self, gpu: SimulatedGpu, workload: e.Workload, until_ms: int) -> None:
        self.gpu = gpu
        self.workload = workload
        self.until_ms = until_ms
        self.asked = 0
        """Which of all pulls it is: those of one load are served in that order."""


class Line:
    """The tasks of a workload, and the pulls that wait for them."""

    __slots__ = ("expiring", "tasks", "waiting")

    def __init__(self) -> None:
        self.tasks: deque[e.TurnAdmitted] = deque()
        self.waiting: list[tuple[int, int, Pull]] = []
        """By load. An entry whose pull was sent anew since is dropped where it is met."""
        self.expiring: list[tuple[int, int, Pull]] = []


class Broker:
    """Tasks of each workload, and the GPUs that would take one."""

    def __init__(self) -> None:
        self._lines: dict[e.Workload, Line] = {}
        self._pulls: dict[str, Pull] = {}
        self._asked = 0

    def put(self, task: e.TurnAdmitted) -> None:
        """Store a task."""
        self._line(e.Workload(task.mode, task.type, task.model)).tasks.append(task)

    def pull(self, gpu: SimulatedGpu, now_ms: int) -> None:
        """The GPU asks for a task, unless it does so already. To be called before what it holds changes, too."""
        pull = self._pulls.get(gpu.offer.gpu)
        if pull is None or pull.workload != gpu.serving:
            if gpu.serving is not None and gpu.room > 0:
                pull = self._pulls[gpu.offer.gpu] = Pull(gpu, gpu.serving, now_ms + EXPIRES_MS)
                self._send(pull)
        elif pull.until_ms <= now_ms:
            self._again(pull, now_ms)

    def hand_out(self, workload: e.Workload, now_ms: int) -> tuple[SimulatedGpu, e.TurnAdmitted] | None:
        """Return the next task and who takes it, or None if there is none of either."""
        line = self._lines.get(workload)
        if line is None or not line.tasks:
            return None
        while line.expiring and line.expiring[0][0] <= now_ms:
            _, asked, pull = heapq.heappop(line.expiring)
            if asked == pull.asked:
                self._again(pull, now_ms)
        while line.waiting:
            _, asked, pull = heapq.heappop(line.waiting)
            if asked == pull.asked:
                self._end(pull)
                if pull.gpu.serving == workload and pull.gpu.room > 0:
                    return pull.gpu, line.tasks.popleft()
        return None

    def _line(self, workload: e.Workload) -> Line:
        line = self._lines.get(workload)
        if line is None:
            line = self._lines[workload] = Line()
        return line

    def _again(self, pull: Pull, now_ms: int) -> None:
        """It expired, perhaps several times since, and was sent anew with what the GPU holds."""
        gpu = pull.gpu
        if gpu.serving != pull.workload or gpu.room <= 0:
            self._end(pull)
            return
        pull.until_ms += ((now_ms - pull.until_ms) // EXPIRES_MS + 1) * EXPIRES_MS
        self._send(pull)

    def _send(self, pull: Pull) -> None:
        self._asked += 1
        pull.asked = self._asked
        line, gpu = self._line(pull.workload), pull.gpu
        heapq.heappush(line.waiting, (10 * len(gpu.bound) // gpu.slots, pull.asked, pull))
        heapq.heappush(line.expiring, (pull.until_ms, pull.asked, pull))

    def _end(self, pull: Pull) -> None:
        pull.asked = 0
        if self._pulls.get(pull.gpu.offer.gpu) is pull:
            del self._pulls[pull.gpu.offer.gpu]
