"""Which pods of a Deployment may go, so that nobody is cut off: pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from helix_projections.fleet.provider import Gpus, Standing


class Pod(msgspec.Struct, frozen=True):
    """A pod that is not being deleted already."""

    name: str
    marked: bool
    """It bears our mark: the cluster is to take it first."""


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, marks first."""

    replicas: int
    mark: tuple[str, ...] = ()
    unmark: tuple[str, ...] = ()


def standing_of(pod: str, gpus: Gpus) -> Standing | None:
    """Return the standing of the GPUs in `pod`: those named `<pod>` or `<pod>-…`; None: none has joined."""
    found = [standing for gpu, standing in gpus.items() if gpu == pod or gpu.startswith(f"{pod}-")]
    if not found:
        return None
    if "serving" in found:
        return "serving"
    return "draining" if "draining" in found else "drained"


def scaling(size: int, replicas: int, pods: Sequence[Pod], gpus: Gpus, *, most: int) -> Scaling:
    """Return how to come from `replicas` to `size` without ending a GPU that holds somebody.

    A pod that drains does not count any more, so another may run beside it, up to `most`. It goes when it has
    drained; if that is not enough, pods go whose GPU has not joined. Whoever is to go next is marked, since the
    cluster takes those first, and nobody else is.
    """
    # Those with a mark first: they were seen to have drained, and their GPU has left since.
    said = {
        pod.name: standing_of(pod.name, gpus)
        for pod in sorted(pods, key=lambda pod: (not pod.marked, pod.name))
    }
    drained = [name for name, each in said.items() if each == "drained"]
    absent = [name for name, each in said.items() if each is None]
    draining = sum(each == "draining" for each in said.values())
    kept = len(said) - len(drained) - len(absent)
    wanted = min(size + draining, max(size, most))
    target = max(wanted, min(replicas, kept))
    room = max(0, target - kept)
    going = {*drained, *absent[: max(0, len(absent) - room)]}
    return Scaling(
        replicas=target,
        mark=tuple(pod.name for pod in pods if pod.name in going and not pod.marked),
        unmark=tuple(pod.name for pod in pods if pod.name not in going and pod.marked),
    )
