"""What simulated work leaves behind: one tiny picture for each owner, and checkpoints that say their step."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import msgspec

from helix_es.core.errors import Rejected
from helix_es.jetstream.files import Files

MOST_BYTES = 4096  # of a checkpoint: ours have a few dozen


class _Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    session: str
    step: int


class Makings:
    """Real files, so that whoever reads or removes them is loaded as well."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._pictures: dict[str, str] = {}

    async def picture(self, owner: str) -> str:
        """Return the id of the picture that every turn of `owner` makes."""
        known = self._pictures.get(owner)
        if known is None:
            known = self._pictures[owner] = await self._files.put(
                pixel(), owner=owner, name="simulated.png", media="image/png", purpose="image"
            )
        return known

    async def checkpoint(self, session: str, owner: str, step: int) -> str:
        """Store a checkpoint and return its id."""
        return await self._files.put(
            msgspec.json.encode(_Checkpoint(session=session, step=step)),
            owner=owner,
            name=f"checkpoint-{step}.json",
            media="application/json",
            purpose="checkpoint",
            session=session,
        )

    async def step_of(self, session: str, files: list[str]) -> int:
        """Return the step to go on after; 0 where there is no checkpoint of ours, or not any more."""
        if len(files) != 1:
            return 0
        try:
            info = await self._files.info(files[0])
            if info.size > MOST_BYTES or info.session != session:
                return 0
            data = b"".join([piece async for piece in self._files.read(files[0])])
            return max(0, msgspec.json.decode(data, type=_Checkpoint).step)
        except (Rejected, msgspec.DecodeError):
            return 0


def pixel() -> bytes:
    """Return a PNG of one grey pixel."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks: Mapping[bytes, bytes] = {b"IHDR": header, b"IDAT": zlib.compress(b"\x00\x80"), b"IEND": b""}
    made = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks.items():
        made += [struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(name + data))]
    return b"".join(made)
