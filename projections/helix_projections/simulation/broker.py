"""Simulated tasks: what is admitted goes to the emptiest GPU with room, as the broker's prioritized consumers do."""

from __future__ import annotations

import heapq
from collections import deque

from helix_es.core import events as e
from helix_projections.simulation.gpu import SimulatedGpu


class Broker:
    """Tasks of each workload, and the GPUs that would take one."""

    def __init__(self) -> None:
        self._tasks: dict[e.Workload, deque[e.TurnAdmitted]] = {}
        self._pulls: dict[e.Workload, list[tuple[int, int, SimulatedGpu]]] = {}
        """GPUs by sessions held. An entry that is not true any more is dropped where it is met."""
        self._asked = 0

    def put(self, task: e.TurnAdmitted) -> None:
        """Store a task."""
        workload = e.Workload(task.mode, task.type, task.model)
        self._tasks.setdefault(workload, deque()).append(task)

    def pull(self, gpu: SimulatedGpu) -> None:
        """The GPU asks for a task, with what it holds now."""
        if gpu.serving is not None and gpu.room > 0:
            self._asked += 1
            pulls = self._pulls.setdefault(gpu.serving, [])
            heapq.heappush(pulls, (len(gpu.bound), self._asked, gpu))

    def hand_out(self, workload: e.Workload) -> tuple[SimulatedGpu, e.TurnAdmitted] | None:
        """Return the next task and who takes it, or None if there is none of either."""
        tasks, pulls = self._tasks.get(workload), self._pulls.get(workload)
        while tasks and pulls:
            held, _, gpu = heapq.heappop(pulls)
            if held == len(gpu.bound) and gpu.serving == workload and gpu.room > 0:
                return gpu, tasks.popleft()
        return None
