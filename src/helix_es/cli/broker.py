"""What `helix doctor` asks the broker: is it there, is everything in it as it must be, does a scheduler act."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from helix_es.cli.checks import GIB, Check, fails, ok, warn
from helix_es.core.codec import decode
from helix_es.core.errors import HelixError, Misconfigured, Unreadable
from helix_es.core.events import SchedulerBeat
from helix_es.core.subjects import SCHEDULER_BEAT
from helix_es.jetstream import streams
from helix_es.jetstream.client import ApiError, Connection

ACTIVE_S = 2.0  # it beats four times a second
NO_MESSAGE = 10037
FULL = 0.8
FILES = f"OBJ_{streams.FILES_BUCKET}"


async def broker(nats: str, connect: Callable[[], Awaitable[Connection]]) -> list[Check]:
    """Return the findings about NATS at `nats`, which is how it is called in them."""
    try:
        connection = await connect()
    except Misconfigured as error:
        start = "start one: 'helix up' or nats-server; or name another with --nats"
        return [fails("nats", _without_secret(str(error).partition("; start one")[0]), start)]
    try:
        version = connection.nc.connected_server_version
        found = [ok("nats", f"{version.major}.{version.minor}.{version.patch} at {_without_secret(nats)}")]
        async for check in _jetstream(connection):
            found.append(check)
        return found
    finally:
        await connection.close()


def _without_secret(text: str) -> str:
    """Return `text` with the user and the password of every URL in it left out."""
    return re.sub(r"//[^/@\s]*@", "//…@", text)


async def _jetstream(connection: Connection) -> AsyncIterator[Check]:
    """Check what is in JetStream. What one check cannot be asked for does not stop the others."""
    try:
        infos = await _infos(connection)
    except HelixError as error:
        yield fails("jetstream", str(error), "switch JetStream on in the server, for this user's account")
        return
    for name in streams.stream_configs(1):
        yield _stream(name, infos)
    for what, check in (("storage", _storage), ("scheduler", _scheduler), ("tasks", _tasks)):
        try:
            yield await check(connection, infos)
        except HelixError as error:
            yield fails(what, str(error), "see the log of the NATS server")


Infos = dict[str, dict[str, Any]]


async def _infos(connection: Connection) -> Infos:
    """Return what JetStream tells of each stream that is there."""
    infos: Infos = {}
    for name in streams.stream_configs(1):
        try:
            infos[name] = await connection.api(f"STREAM.INFO.{name}")
        except ApiError as error:
            if error.err_code not in streams.NOT_FOUND:
                raise
    return infos


def _stream(name: str, infos: Infos) -> Check:
    what = f"stream {name}"
    if name not in infos:
        return fails(
            what, "is not there", "start a scheduler, which makes it: 'helix up' or 'helix scheduler'"
        )
    config, state = infos[name]["config"], infos[name]["state"]
    replicas = infos.get("LOG", infos[name])["config"]["num_replicas"]
    try:
        streams.compare(name, streams.stream_configs(replicas)[name], config)
    except Misconfigured as error:
        said, _, advice = str(error).partition("; ")
        return fails(what, said, advice)
    size = f"{state['messages']} messages, {state['bytes'] / 2**20:.1f} MiB"
    if config["max_bytes"] > 0 and state["bytes"] > FULL * config["max_bytes"]:
        share = state["bytes"] / config["max_bytes"]
        return warn(
            what, f"{size}, {share:.0%} of its limit", f"raise it: nats stream edit {name} --max-bytes"
        )
    return ok(what, size)


async def _storage(connection: Connection, _infos: Infos) -> Check:
    account = await connection.api("INFO")
    said, full = [], False
    for kind, used, most in (
        ("files", account["storage"], account["limits"]["max_storage"]),
        ("memory", account["memory"], account["limits"]["max_memory"]),
    ):
        limit = f"of {most / GIB:.2f} GiB" if most > 0 else "without a limit of the account"
        said.append(f"{kind} {used / GIB:.2f} GiB {limit}")
        full = full or (most > 0 and used > FULL * most)
    if full:
        return warn("storage", ", ".join(said), "raise the account's limits before the log refuses new facts")
    return ok("storage", ", ".join(said))


async def _scheduler(connection: Connection, infos: Infos) -> Check:
    """Ask for the last beat; if it is a standby's or an old one, listen a while for an active one."""
    last = await _last_beat(connection, infos)
    if last is None or not last[0].active or last[1] > ACTIVE_S:
        heard = await _hear(connection)
        if heard is None:
            age = "no scheduler ever beat" if last is None else f"the last beat is {last[1]:.0f} s old"
            if last is not None and last[1] <= ACTIVE_S:
                age = f"{last[0].scheduler} stands by, none acts"
            return fails("scheduler", age, "start one: 'helix up' or 'helix scheduler'; see its log")
        last = (heard, 0.0)
    return ok("scheduler", f"{last[0].scheduler} acts, folded to {last[0].seq}")


async def _last_beat(connection: Connection, infos: Infos) -> tuple[SchedulerBeat, float] | None:
    """Return the last beat and its age in seconds, by the server's own clock."""
    if "BEATS" not in infos:
        return None
    try:
        answer = await connection.api("STREAM.MSG.GET.BEATS", {"last_by_subj": SCHEDULER_BEAT})
    except ApiError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    now = (await connection.api("STREAM.INFO.BEATS"))["ts"]
    message = answer["message"]
    beat = _beat(message["subject"], base64.b64decode(message["data"]))
    return None if beat is None else (beat, (_instant(now) - _instant(message["time"])).total_seconds())


def _instant(text: str) -> datetime:
    """Return an instant of the server's, which gives nanoseconds."""
    return datetime.fromisoformat(text.rstrip("Z")[:26].ljust(26, "0") if "." in text else text.rstrip("Z"))


def _beat(subject: str, data: bytes) -> SchedulerBeat | None:
    try:
        event = decode(subject, data)
    except Unreadable:
        return None
    return event if isinstance(event, SchedulerBeat) else None


async def _hear(connection: Connection) -> SchedulerBeat | None:
    heard: asyncio.Future[SchedulerBeat] = asyncio.get_running_loop().create_future()

    def sink(subject: str, _reply: str, _headers: bytes, data: bytes) -> None:
        beat = _beat(subject, data)
        if beat is not None and beat.active and not heard.done():
            heard.set_result(beat)

    sub = await connection.sink(SCHEDULER_BEAT, sink)
    try:
        return await asyncio.wait_for(heard, ACTIVE_S)
    except TimeoutError:
        return None
    finally:
        await connection.unsink(sub)


async def _tasks(connection: Connection, infos: Infos) -> Check:
    """Look for tasks that were given out, not taken, and given out again."""
    if "TASKS" not in infos:
        return warn("tasks", "cannot be seen without stream TASKS", "see above")
    consumers: list[dict[str, Any]] = []
    while True:
        page = await connection.api("CONSUMER.LIST.TASKS", {"offset": len(consumers)})
        consumers += page["consumers"] or []
        if not page["consumers"] or len(consumers) >= page["total"]:
            break
    stuck = [(each["name"], each["num_redelivered"]) for each in consumers if each["num_redelivered"] > 0]
    if stuck:
        found = ", ".join(f"{count} in {name}" for name, count in stuck[:5])
        advice = "runners get these tasks and do not start them; see the logs of the runners of that model"
        return warn("tasks", f"given out more than once: {found}", advice)
    waiting = sum(each["num_pending"] for each in consumers)
    return ok("tasks", f"{waiting} waiting in {len(consumers)} queues, none given out twice")
