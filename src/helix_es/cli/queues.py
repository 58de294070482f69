"""What the work queue says: tasks that nobody pulls, that are given out in vain, or that no queue has any more."""

from __future__ import annotations

from typing import Any

from helix_es.cli.checks import Check, fails, ok, warn
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import stamp_ms

OLD_S = 15.0  # three times as long as a runner may take to say that it started
STALE_S = 60.0
SHOWN = 5


async def tasks(connection: Connection, info: dict[str, Any]) -> list[Check]:
    """Return the finding about stream TASKS, which says `info` of itself. Raises Unavailable."""
    consumers: list[dict[str, Any]] = []
    while True:
        page = await connection.api("CONSUMER.LIST.TASKS", {"offset": len(consumers)})
        consumers += page["consumers"] or []
        if not page["consumers"] or len(consumers) >= page["total"]:
            break
    return [judge(info, consumers)]


def judge(info: dict[str, Any], consumers: list[dict[str, Any]]) -> Check:
    """Judge the tasks by how old the oldest is: one is taken, and gone, as soon as its turn has started."""
    state = info["state"]
    waiting = sum(each["num_pending"] for each in consumers)
    out = sum(each["num_ack_pending"] for each in consumers)
    age_s = (stamp_ms(info["ts"]) - stamp_ms(state["first_ts"])) / 1000 if state["messages"] else 0.0
    bad = fails if age_s > STALE_S else warn
    if age_s > OLD_S:
        idle = [
            (each["name"], each["num_pending"])
            for each in consumers
            if each["num_pending"] and not each["num_waiting"]
        ]
        if idle:
            found = f"nobody pulls {_some(idle)}; the oldest is {age_s:.0f} s old"
            return bad(
                "tasks",
                found,
                "the GPUs that these were admitted for do not ask: see 'helix gpus' and their logs",
            )
        if (dead := state["messages"] - waiting - out) > 0:
            advice = "dead letters; see them with 'nats stream view TASKS', cancel their turns, purge their subject"
            return bad("tasks", f"{dead} that no queue gives out any more, up to {age_s:.0f} s old", advice)
    stuck = [(each["name"], each["num_redelivered"]) for each in consumers if each["num_redelivered"] > 0]
    if stuck:
        advice = "runners get these tasks and do not start them; see the logs of the runners of that model"
        return warn("tasks", f"given out more than once: {_some(stuck)}", advice)
    return ok("tasks", f"{waiting} waiting in {len(consumers)} queues, none given out twice")


def _some(named: list[tuple[str, int]]) -> str:
    said = ", ".join(f"{count} in {name}" for name, count in named[:SHOWN])
    return said + (f" and {len(named) - SHOWN} more queues" if len(named) > SHOWN else "")
