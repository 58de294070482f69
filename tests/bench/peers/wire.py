"""HTTP as the clients of every system here speak it: one kept connection each, no library; standard library only."""

from __future__ import annotations

import asyncio

LINE_END = b"\r\n"


class Refused(Exception):
    """The server's answer was not the expected status."""


class Wire:
    """One kept connection to a loopback port, opened at the first request and again after it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, status: int) -> bytes:
        """Return the body of the answer. Raises Refused if its status is another one."""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return await self._ask(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n".encode() + body, status
        )

    async def get(self, path: str) -> bytes:
        """Return the whole body, however it is sent: of an event stream, all until the server ends it."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), 200)

    async def _ask(self, request: bytes, status: int) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            found, body = await _answer(reader)
        except BaseException:
            self.close()  # a half-read answer would be taken for the next request's
            raise
        if found != status:
            raise Refused(f"HTTP {found}: {body[:80].decode(errors='replace')}")
        return body

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    status = int((await reader.readuntil(LINE_END)).split(maxsplit=2)[1])
    length, chunked = 0, False
    while (line := await reader.readuntil(LINE_END)) != LINE_END:
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            length = int(value)
        chunked = chunked or (name == b"transfer-encoding" and b"chunked" in value)
    return status, await _chunks(reader) if chunked else await reader.readexactly(length)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while size := int(await reader.readuntil(LINE_END), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(len(LINE_END))
    await reader.readuntil(LINE_END)
    return b"".join(parts)
