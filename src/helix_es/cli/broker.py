"""What `helix doctor` asks the broker: is it there, is everything in it as it must be, does a scheduler act."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from helix_es.cli import failover, queues, troubles
from helix_es.cli.checks import GIB, Check, clock, fails, ok, warn
from helix_es.cli.lately import last
from helix_es.cli.replicas import Infos, cluster
from helix_es.core.codec import decode
from helix_es.core.errors import HelixError, Misconfigured, Unreadable
from helix_es.core.events import SchedulerBeat
from helix_es.core.subjects import SCHEDULER_BEAT
from helix_es.jetstream import streams
from helix_es.jetstream.client import ApiError, Connection
from helix_es.jetstream.headers import stamp_ms

ACTIVE_S = 2.0  # it beats four times a second
FLUSH_S = 2
FULL = 0.8
NO_ROOM = 0.99  # of an account's storage
PROMPT_BYTES = 786_432  # the largest request; a log with less room than this refuses somebody already
FILES = f"OBJ_{streams.FILES_BUCKET}"
STREAMS = tuple(streams.stream_configs(1))
READS = (
    "INFO",
    *(f"STREAM.INFO.{name}" for name in STREAMS),
    "DIRECT.GET.LOG",
    "DIRECT.GET.BEATS",
    "CONSUMER.LIST.TASKS",
)


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
    denied = await _denied(connection)
    if denied:
        advice = (
            "ask as one who may: --nats-user observer, with the seed file that deploy/nats/make-users.py made"
        )
        yield warn("permissions", f"not permitted to read {', '.join(denied)}", advice)
    asked = [each for each in READS if "INFO" in each and each not in denied]
    answers = dict(zip(asked, await asyncio.gather(*(_ask(connection, each) for each in asked)), strict=True))
    told = {each: answer for each, answer in answers.items() if isinstance(answer, dict)}
    if asked and not told:
        advice = "switch JetStream on for this user's account; it switches itself off when it cannot write: see its log"
        yield fails("jetstream", str(answers[asked[0]]), advice)
        return
    for name in STREAMS:
        if (each := f"STREAM.INFO.{name}") in answers:
            yield _stream(name, answers[each], told)
    infos = {name: told[each] for name in STREAMS if (each := f"STREAM.INFO.{name}") in told}
    if "INFO" in answers:
        yield _storage(answers["INFO"])
    yield cluster(infos, _now_ms(infos) - failover.HOUR_MS)
    async for check in _asked(connection, infos, denied):
        yield check


Answer = dict[str, Any] | HelixError | None


async def _ask(connection: Connection, subject: str) -> Answer:
    """Return the answer, None if what it is about is not there, or the error."""
    try:
        return await connection.api(subject)
    except ApiError as error:
        return None if error.err_code in streams.NOT_FOUND else error
    except HelixError as error:
        return error


def _now_ms(infos: Infos) -> int:
    """Return the server's time, 0 if no stream was there to ask."""
    return max((stamp_ms(info["ts"]) for info in infos.values()), default=0)


async def _denied(connection: Connection) -> list[str]:
    """Return those of READS that we may not ask: a refused request looks like a lost one, so find out before.

    A request without a place to answer to does nothing, but a refusal of it is said.
    """
    if not await _refused(connection, READS):
        return []
    return [each for each in READS if await _refused(connection, [each])]


async def _refused(connection: Connection, subjects: Sequence[str]) -> bool:
    before = connection.nc.last_error
    for subject in subjects:
        await connection.publish(f"$JS.API.{subject}", b"")
    for _ in range(2):  # the client's first ping overtakes what it buffers
        try:
            await connection.nc.flush(timeout=FLUSH_S)
        except TimeoutError:
            return False
    said = connection.nc.last_error
    return said is not before and "permissions violation" in str(said).lower()


async def _asked(connection: Connection, infos: Infos, denied: Sequence[str]) -> AsyncIterator[Check]:
    """Make the checks that read more than what a stream says of itself."""
    now_ms = _now_ms(infos)
    beats = infos.get("BEATS")
    hand_ms = stamp_ms(beats["state"]["last_ts"]) if beats else 0
    replicas = infos["LOG"]["config"]["num_replicas"] if "LOG" in infos else 1
    facts, signs = ("LOG", "DIRECT.GET.LOG"), ("BEATS", "DIRECT.GET.BEATS")
    checks: list[tuple[str, tuple[tuple[str, str], ...], Callable[[], Awaitable[list[Check]]]]] = [
        ("scheduler", (signs,), lambda: _scheduler(connection, now_ms)),
        ("failover", (signs,), lambda: _failover(connection, now_ms, replicas)),
        ("tasks", (("TASKS", "CONSUMER.LIST.TASKS"),), lambda: queues.tasks(connection, infos["TASKS"])),
        ("lost", (facts, signs), lambda: troubles.gpus(connection, now_ms, hand_ms)),
        ("turns", (facts,), lambda: troubles.turns(connection, now_ms)),
    ]
    for what, needs, check in checks:
        if any(read in denied for stream, direct in needs for read in (direct, f"STREAM.INFO.{stream}")):
            yield warn(what, "cannot be seen with these permissions", "see above")
            continue
        if missing := [stream for stream, _ in needs if stream not in infos]:
            told = fails if what == "scheduler" else warn
            yield told(what, f"cannot be seen without stream {', '.join(missing)}", "see above")
            continue
        try:
            for found in await check():
                yield found
        except HelixError as error:
            yield fails(what, str(error), "see the log of the NATS server")


# -- streams


def _stream(name: str, answer: Answer, told: dict[str, dict[str, Any]]) -> Check:
    what = f"stream {name}"
    if isinstance(answer, HelixError):
        return fails(
            what, str(answer), "its leader is gone: asked again in ten seconds there should be another"
        )
    if answer is None:
        return fails(
            what, "is not there", "start a scheduler, which makes it: 'helix up' or 'helix scheduler'"
        )
    config, state = answer["config"], answer["state"]
    replicas = told.get("STREAM.INFO.LOG", answer)["config"]["num_replicas"]
    try:
        streams.compare(name, streams.stream_configs(replicas)[name], config)
    except Misconfigured as error:
        said, _, advice = str(error).partition("; ")
        return fails(what, said, advice)
    return _room(name, config, state)


def _room(name: str, config: dict[str, Any], state: dict[str, Any]) -> Check:
    """Judge how full a stream is. One that discards what is new refuses every append when it is full."""
    what = f"stream {name}"
    size = f"{state['messages']} messages, {state['bytes'] / 2**20:.1f} MiB"
    for used, limit, least in (
        (state["bytes"], "max_bytes", PROMPT_BYTES),
        (state["messages"], "max_msgs", 1),
    ):
        most = config.get(limit, -1)
        if most <= 0 or used <= FULL * most:
            continue
        found = f"{size}, {used / most:.0%} of its {limit}"
        raise_it = f"raise it: nats stream edit {name} --{limit.replace('_', '-')}"
        if most - used < least and config["discard"] == "new":
            return fails(what, f"{found}: full, it refuses what is new (10077)", raise_it)
        return warn(what, found, raise_it)
    return ok(what, size)


def _storage(account: Answer) -> Check:
    if not isinstance(account, dict):
        return fails(
            "storage", str(account), "see the log of the NATS server; a cluster needs a majority of its nodes"
        )
    said, share = [], 0.0
    for kind, used, most in (
        ("files", account["storage"], account["limits"]["max_storage"]),
        ("memory", account["memory"], account["limits"]["max_memory"]),
    ):
        limit = f"of {most / GIB:.2f} GiB" if most > 0 else "without a limit of the account"
        said.append(f"{kind} {used / GIB:.2f} GiB {limit}")
        share = max(share, used / most if most > 0 else 0.0)
    if share > NO_ROOM:
        return fails("storage", ", ".join(said), "raise the account's limits: the broker refuses new facts")
    if share > FULL:
        return warn("storage", ", ".join(said), "raise the account's limits before the log refuses new facts")
    return ok("storage", ", ".join(said))


# -- the scheduler


async def _failover(connection: Connection, now_ms: int, replicas: int) -> list[Check]:
    return [failover.failover(await failover.watch(connection, now_ms), replicas)]


async def _scheduler(connection: Connection, now_ms: int) -> list[Check]:
    """Look for a beat of an active one that was stored just now; if there is none, listen a while."""
    acting = await failover.acting(connection, now_ms - int(ACTIVE_S * 1000), now_ms)
    if acting is not None:
        return [ok("scheduler", f"{acting.scheduler} acts, folded to {acting.seq}")]
    stored = (await last(connection, "BEATS", [SCHEDULER_BEAT])).get(SCHEDULER_BEAT)
    heard = await _hear(connection)
    start = "start one: 'helix up' or 'helix scheduler'; see its log"
    if heard is not None:
        after = (await last(connection, "BEATS", [SCHEDULER_BEAT])).get(SCHEDULER_BEAT)
        if after == stored:
            since = f"since {clock(stored.at_ms)}" if stored else "at all"
            advice = "its disk or its store (max_file_store) is full, or a majority is missing: see its log"
            return [
                fails("scheduler", f"{heard.scheduler} beats, but the broker stored no beat {since}", advice)
            ]
        return [ok("scheduler", f"{heard.scheduler} acts, folded to {heard.seq}")]
    if stored is None:
        return [fails("scheduler", "no scheduler ever beat", start)]
    age_s = (now_ms - stored.at_ms) / 1000
    if age_s <= ACTIVE_S and isinstance(stored.event, SchedulerBeat):
        return [fails("scheduler", f"{stored.event.scheduler} stands by, none acts", start)]
    return [fails("scheduler", f"the last beat is {age_s:.0f} s old", start)]


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
