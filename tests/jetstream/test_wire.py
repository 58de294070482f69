"""However the bytes come in, sinks get what nats-py's own parser would have given them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from helix_es.jetstream.wire import SinkParser
from tests.examples import many

SINK, OTHER = 3, 12  # subscriptions: one with a sink, one without
HEAD = b"NATS/1.0\r\nHelix-Event: x\r\n\r\n"


class Client:
    """What a parser calls, written down in order."""

    def __init__(self, *sunk: int) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.sinks = dict.fromkeys(sunk, self.sink)

    def sink(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        self.heard.append(("message", subject, reply, headers, data))

    async def _process_msg(
        self, _sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        self.sink(subject.decode(), reply.decode(), headers or b"", data)

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))

    async def _process_pong(self) -> None:
        self.heard.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.heard.append(("error", error))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(("info", info))


def told(subject: str, sid: int, reply: str, head: bytes, data: bytes) -> bytes:
    """Return a message as the server sends it."""
    words = ["HMSG" if head else "MSG", subject, str(sid), *([reply] if reply else [])]
    words += [str(len(head))] * bool(head) + [str(len(head) + len(data))]
    return " ".join(words).encode() + b"\r\n" + head + data + b"\r\n"


bodies = st.one_of(
    st.binary(max_size=60), st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 3 b 4\r\nabcd\r\n", b"x" * 700])
)
messages = st.builds(
    told,
    st.sampled_from(["session.a.turn", "_INBOX.x.1", "größe"]),
    st.sampled_from([SINK, SINK, SINK, OTHER]),
    st.sampled_from(["", "$JS.ACK.LOG.follow.1.7.7.1700000000000000000.3"]),
    st.sampled_from([b"", HEAD]),
    bodies,
)
others = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'stale connection'\r\n", b'INFO {"a":1}\r\n']
)


async def heard(parser: Any, client: Client, chunks: list[bytes]) -> list[tuple[Any, ...]]:
    for chunk in chunks:
        await parser.parse(chunk)
    assert not parser.buf
    return client.heard


@settings(max_examples=many(200))
@given(st.lists(st.one_of(messages, messages, others), max_size=12), st.data())
def test_it_hears_what_the_parser_of_nats_py_hears(said: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    theirs, ours = Client(), Client(SINK)
    expected = asyncio.run(heard(Parser(theirs), theirs, [whole]))
    assert asyncio.run(heard(SinkParser(ours), ours, chunks)) == expected
    assert len(expected) == len([each for each in said if each != b"+OK\r\n"])


def test_a_sink_gets_its_messages_without_the_library() -> None:
    client = Client(SINK)
    client._process_msg = None  # type: ignore[assignment, method-assign]  # calling it would fail
    message = told("s.a.b", SINK, "r", HEAD, b"body")
    chunks = [message * 3 + message[:9], message[9:50], message[50:] + message]
    assert len(asyncio.run(heard(SinkParser(client), client, chunks))) == 5


def test_nonsense_is_an_error_as_before() -> None:
    with pytest.raises(ProtocolError):
        asyncio.run(SinkParser(Client(SINK)).parse(told("a", SINK, "r", b"", b"b") + b"WHAT IS THIS\r\n"))
