"""Files go into the object store and come out as they were, in pieces, and only whole."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from pathlib import Path

import pytest

from helix_es.core.errors import Rejected, Unavailable
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import STREAM, Files
from helix_es.jetstream.log import JetStreamLog
from helix_es.log import Snapshot

pytestmark = pytest.mark.anyio

CHUNK = 128 * 1024


@pytest.fixture
def files(connection: Connection) -> Files:
    numbers = itertools.count(1)
    return Files(connection, new_id=lambda: f"f{next(numbers)}")


async def put(files: Files, data: bytes, owner: str = "ann", name: str = "a.jsonl") -> str:
    return await files.put(io.BytesIO(data), owner=owner, name=name, media="text/plain", purpose="dataset")


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 40 * CHUNK + 7])
async def test_a_file_comes_out_as_it_went_in(files: Files, tmp_path: Path, size: int) -> None:
    data = bytes(n * 31 % 251 for n in range(size))
    file = await put(files, data)
    info = await files.info(file, "ann")
    assert (info.size, info.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert (info.name, info.purpose, info.owner) == ("a.jsonl", "dataset", "ann")
    assert b"".join([piece async for piece in files.read(file)]) == data
    await files.fetch(file, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data


async def test_another_owners_file_is_not_there(files: Files) -> None:
    file = await put(files, b"secret")
    for name, owner in ((file, "bob"), ("nothing", "ann"), ("../x", "ann"), ("*", "ann"), ("", "ann")):
        with pytest.raises(Rejected, match="no file"):
            await files.info(name, owner)


async def test_each_owner_lists_their_own_and_no_snapshots(files: Files, connection: Connection) -> None:
    mine = [await put(files, b"1"), await put(files, b"2")]
    await put(files, b"3", owner="bob")
    await JetStreamLog(connection).save_snapshot("occupancy", Snapshot(1, b"{}"))
    assert [each.id for each in await files.list("ann")] == mine
    await files.remove(mine[0])
    await files.remove(mine[0])
    assert [each.id for each in await files.list("ann")] == mine[1:]
    with pytest.raises(Rejected):
        await files.info(mine[0])


async def test_a_file_that_lost_a_piece_is_refused_and_leaves_nothing_behind(
    files: Files, connection: Connection, tmp_path: Path
) -> None:
    file = await put(files, b"x" * (3 * CHUNK))
    await connection.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": 2})
    with pytest.raises(Unavailable, match="damaged"):
        await files.fetch(file, tmp_path / "got")
    assert [each.name for each in os.scandir(tmp_path) if "got" in each.name] == []
