"""What the copies of the streams say: nodes that miss, copies that lag, leaders that are new or not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helix_es.cli.checks import Check, clock, fails, ok, warn
from helix_es.jetstream.headers import stamp_ms

Infos = dict[str, dict[str, Any]]
"""What JetStream tells of each stream, by its name."""

SILENT_NS = 5_000_000_000  # a leader speaks to its followers once a second
LAG = 1000  # messages: more than what is on its way while somebody writes at full speed
ELECTED_MS = 5_000  # a new stream has its first leader within so long


def cluster(infos: Infos, since_ms: int) -> Check:
    """Return what there is to say of the copies; leaders that changed before `since_ms` are history."""
    copies = {name: info for name, info in infos.items() if info["config"]["num_replicas"] > 1}
    if not copies:
        return ok("cluster", "one server: each stream is there once")
    headless = [name for name, info in copies.items() if not info.get("cluster", {}).get("leader")]
    missing = _said(copies, _is_missing)
    if headless:
        found = f"no leader, hence no quorum, for {', '.join(headless)}" + _and(missing, "missing")
        return fails(
            "cluster", found, "start the nodes that are missing: nothing can be stored until a majority is up"
        )
    lagging = _said(copies, _lags)
    if missing:
        found = f"missing: {missing}" + _and(lagging, "lagging")
        return warn("cluster", found, "start that node: one more loss may stop everything; see its log")
    if lagging:
        advice = "let it catch up before another node is stopped; if it never does, see its disk and network"
        return warn("cluster", f"lagging: {lagging}", advice)
    changed = list(_new_leaders(copies, since_ms))
    if changed:
        advice = "nothing to do if a node was restarted then; else see the log of the node that led before"
        return warn("cluster", f"a leader was lost: {', '.join(changed)}; all copies are current", advice)
    nodes = {name for info in copies.values() for name in _nodes(info)}
    return ok("cluster", f"{len(nodes)} nodes, all copies current")


def _replicas(info: dict[str, Any]) -> list[dict[str, Any]]:
    return info.get("cluster", {}).get("replicas") or []


def _nodes(info: dict[str, Any]) -> Iterator[str]:
    yield str(info["cluster"]["leader"])
    yield from (str(each["name"]) for each in _replicas(info))


def _is_missing(replica: dict[str, Any]) -> str:
    """Return "gone" if its leader does not hear it, else nothing."""
    heard_ns = replica.get("active", 0)
    never = heard_ns == 0 and not replica.get("current")
    return "gone" if replica.get("offline") or never or heard_ns > SILENT_NS else ""


def _lags(replica: dict[str, Any]) -> str:
    """Return how much a copy that is there lags, or nothing."""
    lag = replica.get("lag", 0)
    if _is_missing(replica) or (replica.get("current") and lag < LAG):
        return ""
    return f"by {lag}"


def _said(copies: Infos, judged: Any) -> str:
    """Return the nodes that `judged` says something of, each with its streams."""
    nodes: dict[str, list[str]] = {}
    for name, info in copies.items():
        for replica in _replicas(info):
            if told := judged(replica):
                nodes.setdefault(replica["name"], []).append(name if told == "gone" else f"{name} {told}")
    return ", ".join(f"{node} ({', '.join(streams)})" for node, streams in sorted(nodes.items()))


def _and(said: str, what: str) -> str:
    return f"; {what}: {said}" if said else ""


def _new_leaders(copies: Infos, since_ms: int) -> Iterator[str]:
    for name, info in copies.items():
        if "leader_since" not in info["cluster"]:
            continue
        led_ms, made_ms = stamp_ms(info["cluster"]["leader_since"]), stamp_ms(info["created"])
        if led_ms > since_ms and led_ms > made_ms + ELECTED_MS:
            yield f"{info['cluster']['leader']} leads {name} since {clock(led_ms)}"
