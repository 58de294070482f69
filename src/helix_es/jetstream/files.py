"""Files in the object store: datasets in; pictures, adapters and checkpoints out. Streamed, never whole in memory."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Literal, cast

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import ObjectMeta
from nats.js.object_store import ObjectStore

from helix_es.core.errors import LogFull, Rejected, Unavailable
from helix_es.jetstream.client import FULL, Connection
from helix_es.jetstream.direct import STALE_READ_S, STALE_READS, fresh, page
from helix_es.jetstream.headers import stamp_ms
from helix_es.jetstream.streams import FILES_BUCKET

STREAM = f"OBJ_{FILES_BUCKET}"
PREFIX = "file/"  # of an object's name; snapshots of folds are in the same store under another
CHUNKS = 16  # of 128 KiB in one read: what is on its way to a slow reader stays small
LIST_BATCH = 1000

FilePurpose = Literal["dataset", "image", "adapter", "checkpoint", "artefact"]


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file without reading it."""

    id: str
    owner: str
    name: str
    media: str
    """Media type, as `image/png`."""
    purpose: FilePurpose
    session: str
    """The session that made it; empty for what was uploaded."""
    size: int
    """Bytes."""
    sha256: str
    """Of the content, in hex."""
    created_ms: int


class _Object(msgspec.Struct):
    """The object store's own record of an object."""

    name: str
    nuid: str = ""
    size: int = 0
    digest: str = ""
    deleted: bool = False
    headers: dict[str, list[str]] | None = None
    chunks: int = 0


class Files:
    """The bucket `files`. Raises Unavailable where the server does not answer, LogFull where there is no room."""

    def __init__(self, connection: Connection, *, new_id: Callable[[], str]) -> None:
        self._connection = connection
        self._new_id = new_id
        self._store: ObjectStore | None = None

    async def put(
        self,
        source: BinaryIO | bytes,
        *,
        owner: str,
        name: str,
        media: str,
        purpose: FilePurpose,
        session: str = "",
    ) -> str:
        """Store what `source` holds and return its new id."""
        file = self._new_id()
        headers = {
            "owner": [owner],
            "name": [name],
            "media": [media],
            "purpose": [purpose],
            "session": [session],
        }
        reader = io.BytesIO(source) if isinstance(source, bytes) else source
        store = await self._bucket()
        try:
            await store.put(PREFIX + file, cast(io.BufferedIOBase, reader), ObjectMeta(headers=headers))
        except nats.js.errors.APIError as error:
            if error.err_code in FULL:
                raise LogFull(f"file {name}: the store is full; make room or raise its limits") from error
            raise Unavailable(f"file {name} was not stored: {error}") from error
        except (TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
            raise Unavailable(f"file {name} was not stored: {type(error).__name__}") from error
        return file

    async def _bucket(self) -> ObjectStore:
        if self._store is None:
            try:
                self._store = await self._connection.nc.jetstream().object_store(FILES_BUCKET)
            except (TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
                raise Unavailable(f"the store of files does not answer: {type(error).__name__}") from error
        return self._store

    async def info(self, file: str, owner: str | None = None) -> FileInfo:
        """Return what is known of `file`. Raises Rejected("file_not_found") also if it is another owner's."""
        return (await self._find(file, owner))[0]

    async def _find(self, file: str, owner: str | None) -> tuple[FileInfo, _Object]:
        name = base64.urlsafe_b64encode((PREFIX + file).encode()).decode()
        found = await self._record(f"$O.{FILES_BUCKET}.M.{name}")
        if not found or (owner is not None and found[-1][0].owner != owner):
            raise Rejected("file_not_found", f"no file {file[:80]!r}")
        return found[-1]

    async def _record(self, subject: str) -> list[tuple[FileInfo, _Object]]:
        """Return an object's record, as it is by now: whoever was told of a file must find it."""

        async def read() -> tuple[int, list[tuple[FileInfo, _Object]]]:
            found: list[tuple[FileInfo, _Object]] = []
            seq = 0

            def take(headers: dict[str, str], data: bytes) -> None:
                nonlocal seq
                seq = int(headers["Nats-Sequence"])
                _take(headers, data, found)

            await page(self._connection, STREAM, subject, 1, 1, take)
            return seq, found

        return await fresh(self._connection, STREAM, subject, read)

    async def read(self, file: str) -> AsyncIterator[bytes]:
        """Yield the content in pieces. Raises Unavailable at the end if it is not what was stored."""
        info, stored = await self._find(file, None)
        digest, size = hashlib.sha256(), 0
        start_seq, stale = 1, 0
        while size < stored.size and stale < STALE_READS:
            pieces: list[bytes] = []
            last_seq = start_seq - 1

            def keep(headers: dict[str, str], data: bytes, into: list[bytes] = pieces) -> None:
                nonlocal last_seq
                last_seq = int(headers["Nats-Sequence"])
                into.append(data)

            chunks = f"$O.{FILES_BUCKET}.C.{stored.nuid}"
            await page(self._connection, STREAM, chunks, start_seq, CHUNKS, keep)
            if not pieces:  # a replica that has not yet all of it
                stale += 1
                await asyncio.sleep(STALE_READ_S)
            start_seq = last_seq + 1
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                yield piece
        if size != stored.size or digest.hexdigest() != info.sha256:
            raise Unavailable(
                f"file {file}: {size} of {stored.size} bytes came, or they are damaged; try again"
            )

    async def fetch(self, file: str, to: Path) -> None:
        """Write the content to `to`, which is there only when it is whole."""
        draft = to.with_name(f".{to.name}.{os.getpid()}.{self._new_id()}")
        try:
            with draft.open("wb") as out:
                async for piece in self.read(file):
                    out.write(piece)
            draft.replace(to)
        finally:
            draft.unlink(missing_ok=True)

    async def list(self, owner: str) -> list[FileInfo]:
        """Return what belongs to `owner`, oldest first."""
        found: list[tuple[FileInfo, _Object]] = []
        start_seq: int | None = 1
        while start_seq is not None:
            start_seq = await page(
                self._connection,
                STREAM,
                f"$O.{FILES_BUCKET}.M.>",
                start_seq,
                LIST_BATCH,
                lambda h, d: _take(h, d, found),
            )
        return [info for info, _ in found if info.owner == owner]

    async def remove(self, file: str) -> None:
        """Delete `file`; harmless if it is gone. Only the scheduler's user may."""
        store = await self._bucket()
        try:
            await store.delete(PREFIX + file)
        except nats.js.errors.NotFoundError:
            return
        except (TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
            raise Unavailable(f"file {file} was not removed: {type(error).__name__}") from error


def _take(headers: dict[str, str], data: bytes, into: list[tuple[FileInfo, _Object]]) -> None:
    """Read an object's record; what is deleted, not a file of ours or unreadable is passed over."""
    try:
        stored = msgspec.json.decode(data, type=_Object)
        about = {key: values[0] for key, values in (stored.headers or {}).items()}
        if stored.deleted or not stored.name.startswith(PREFIX):
            return
        info = msgspec.convert(
            {
                **about,
                "id": stored.name.removeprefix(PREFIX),
                "size": stored.size,
                "sha256": base64.urlsafe_b64decode(stored.digest.partition("=")[2]).hex(),
                "created_ms": stamp_ms(headers["Nats-Time-Stamp"]),
            },
            FileInfo,
        )
    except (msgspec.DecodeError, ValueError, KeyError, IndexError):
        return
    into.append((info, stored))
