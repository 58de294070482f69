"""The Philly trace of training jobs, as batch work."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from helix_es.core.events import Workload
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.rows import Row, csv_rows

TUNING = Workload("finetune", "text", "mistral")


def philly(
    path: Path, *, workload: Workload = TUNING, time_scale: float = 1.0, until_ms: int | None = None
) -> Iterator[Arrival]:
    """Yield the jobs of `job,submit_s,duration_s,num_gpus,vc` as fine-tunes of `workload`, of which a GPU runs one.

    A job of n GPUs is n jobs of one GPU and the same duration, submitted together: the load is that of the trace, but
    they need not run at the same time. The virtual cluster is the owner. These were trainings of any kind, not only
    fine-tunes. In order of time, whatever that of the file; times are multiplied by `time_scale`, durations are not.
    Raises Unreadable for a file of another form.
    """
    jobs = sorted(map(_job, csv_rows(path)), key=itemgetter(0))  # a public trace need not be in order
    for at_ms, job, work_ms, gpus, owner in jobs:
        if until_ms is not None and at_ms >= until_ms:
            return
        for part in range(gpus):
            yield Arrival(
                at_ms=round(at_ms * time_scale),
                session=f"p{job}" if gpus == 1 else f"p{job}-{part}",
                turn=1,
                work_ms=max(1, work_ms),
                workload=workload,
                owner=owner,
            )


def _job(row: Row) -> tuple[int, int, int, int, str]:
    at_ms, work_ms = row.whole("submit_s") * 1000, row.whole("duration_s") * 1000
    return at_ms, row.whole("job"), work_ms, max(1, row.whole("num_gpus")), row.text("vc")
