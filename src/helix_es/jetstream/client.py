"""One connection to NATS, with a mailbox that hands raw answers to whoever asked."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from helix_es.core.errors import Conflict, HelixError, LogFull, Misconfigured, Unavailable
from helix_es.jetstream.wire import Sink, SinkClient

log = structlog.get_logger(__name__)

MIN_VERSION = (2, 12)  # prioritized consumers and batched direct get with a wildcard fence
REQUEST_TIMEOUT_S = 5.0
API_TRIES, API_TRY_S = 3, 1.5  # an answer takes milliseconds, but for the first ones of a server that starts
NO_RESPONDERS = b"NATS/1.0 503"


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the server."""

    url: str = "nats://127.0.0.1:4222"
    """Of one server, or of several of a cluster, with commas between them."""
    name: str = "helix"
    nkey_seed_file: str | None = None
    tls_ca_file: str | None = None
    inbox_prefix: str = "_INBOX"
    connect_timeout_s: float = 10.0


class Connection:
    """A connected client; everything in this room goes through one."""

    def __init__(self, client: SinkClient, settings: NatsSettings) -> None:
        self.nc = client
        self.settings = settings
        self.reconnected = asyncio.Event()
        self._tokens = itertools.count(1)
        self._mail: dict[str, Sink] = {}
        self._prefix = ""

    async def open_mailbox(self) -> None:
        """Subscribe once to an inbox of our own; must be called before `mail`."""
        self._prefix = self.nc.new_inbox()
        await self.sink(f"{self._prefix}.*", self._deliver)

    def _deliver(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        # A consumer's deliveries carry the stored subject, not this address: those need a `sink` of their own.
        sink = self._mail.get(subject.rsplit(".", 1)[-1])
        if sink is not None:
            sink(subject, reply, headers, data)

    @contextmanager
    def mail(self, sink: Sink) -> Iterator[str]:
        """Give an address whose messages go to `sink` while the context lasts."""
        token = str(next(self._tokens))
        self._mail[token] = sink
        try:
            yield f"{self._prefix}.{token}"
        finally:
            del self._mail[token]

    async def sink(self, subject: str, sink: Sink) -> Any:
        """Subscribe `sink` to `subject`; return the subscription, to be given to `unsink`."""
        sub = await self.nc.subscribe(subject)
        self.nc.sinks[sub._id] = sink
        return sub

    async def unsink(self, sub: Any) -> None:
        """End a subscription made by `sink`; without a connection there is none to end."""
        self.nc.sinks.pop(sub._id, None)
        with suppress(OSError, nats.errors.Error):
            await sub.unsubscribe()

    async def api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the JetStream API and return its answer. Raises Unavailable, or ApiError for an `error` in it.

        All that we ask may be asked twice: a request that comes during an election is often lost.
        """
        asked = msgspec.json.encode(body or {})
        for left in reversed(range(API_TRIES)):
            try:
                data = await self.request(f"$JS.API.{subject}", asked, timeout=API_TRY_S)
                break
            except Unavailable:
                if not left or not self.connected:
                    raise
        answer: dict[str, Any] = msgspec.json.decode(data)
        if "error" in answer:
            raise ApiError(answer["error"])
        return answer

    async def request(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> bytes:
        """Return the answer's bytes; raises Unavailable if none came."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def sink(_subject: str, _reply: str, raw: bytes, body: bytes) -> None:
            if answer.done():
                return
            if raw.startswith(NO_RESPONDERS):
                answer.set_exception(Unavailable(f"nobody answers on {subject}: is JetStream up?"))
            else:
                answer.set_result(body)

        with self.mail(sink) as address:
            await self.publish(subject, data, address, headers)
            try:
                async with asyncio.timeout(timeout):
                    return await answer
            except TimeoutError:
                raise Unavailable(f"no answer from NATS on {subject} within {timeout} s") from None

    async def publish(
        self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send without waiting for anything. Raises Unavailable while disconnected beyond what is buffered."""
        try:
            await self.nc.publish(subject, data, reply=reply, headers=headers)
        except (OSError, nats.errors.Error) as error:
            raise Unavailable(f"NATS takes nothing now: {type(error).__name__}") from error

    @property
    def connected(self) -> bool:
        return bool(self.nc.is_connected)

    async def close(self) -> None:
        """Flush and close; harmless twice."""
        if not self.nc.is_closed:
            try:
                await asyncio.wait_for(self.nc.flush(timeout=1), 2)
            except (OSError, TimeoutError, nats.errors.Error):
                log.warning("nats_flush_failed")
            with suppress(OSError):  # closing flushes once more, into a socket that may be gone
                await self.nc.close()


class ApiError(HelixError):
    """An answer of the JetStream API that carries an error."""

    code = "jetstream"

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('description', 'error')} ({error.get('err_code')})")
        self.err_code = int(error.get("err_code", 0))


# What the error codes of the server mean to us; never judged by their text.
CONFLICTS = frozenset({10071})
# A fenced write is in flight, or the same message once more; no leader yet; temporarily unavailable.
BUSY = frozenset({10164, 10158, 10008, 10009, 10074})
NO_STREAM = 10059
FULL = frozenset({10077, 10047, 10023, 10028})  # the stream's or the account's limits, memory or file


def translate(error: ApiError, what: str) -> HelixError:
    """Return the error of ours that `error` amounts to."""
    if error.err_code in CONFLICTS:
        return Conflict(f"{what}: somebody else was first")
    if error.err_code in FULL:
        return LogFull(f"{what}: the log is full ({error}); raise its limits or move old facts out")
    if error.err_code in BUSY:
        return Unavailable(f"{what}: {error}")
    return error


async def connect(settings: NatsSettings) -> Connection:
    """Return a connection that reconnects for ever. Raises Misconfigured if there is no server, or one too old."""
    client = SinkClient()
    connection = Connection(client, settings)
    options: dict[str, Any] = {}
    if settings.nkey_seed_file:
        options["nkeys_seed"] = settings.nkey_seed_file
    if settings.tls_ca_file:
        options["tls"] = ssl.create_default_context(cafile=settings.tls_ca_file)

    async def on_reconnect() -> None:
        log.info("nats_reconnected")
        connection.reconnected.set()
        connection.reconnected = asyncio.Event()

    said = ""

    async def on_error(error: Exception) -> None:
        nonlocal said
        text = f"{type(error).__name__}: {error}"
        if text != said:  # ten attempts a second to reconnect would say the same ten times
            log.warning("nats_error", error=text)
        said = text

    connecting = client.connect(
        [each.strip() for each in settings.url.split(",")],
        name=settings.name,
        inbox_prefix=settings.inbox_prefix.encode(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,  # type: ignore[arg-type]  # its hint says int, it is given to sleep()
        ping_interval=5,
        reconnected_cb=on_reconnect,
        error_cb=on_error,
        **options,
    )
    try:
        await asyncio.wait_for(connecting, settings.connect_timeout_s)
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise Misconfigured(
            f"no NATS server answers at {without_secrets(settings.url)} ({said or type(error).__name__}); "
            "start one, or name another with --nats"
        ) from error
    try:
        _check_version(client)
    except Misconfigured:
        await connection.close()
        raise
    await connection.open_mailbox()
    return connection


def without_secrets(url: str) -> str:
    """Return `url`, or several with commas between them, without user and password, fit to be shown."""
    return ",".join(_without_secret(each) for each in url.split(","))


def _without_secret(url: str) -> str:
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _check_version(client: Client) -> None:
    version = client.connected_server_version
    if (version.major, version.minor) < MIN_VERSION:
        raise Misconfigured(
            f"NATS server {version} is too old: Helix needs {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer"
        )
