"""What a program left in its folder, checked file by file and stored as the turn's result."""

from __future__ import annotations

import asyncio
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from helix_es.core.errors import Unavailable
from helix_es.jetstream.files import FilePurpose, Files
from helix_runners.adapters import CONFIG, WEIGHTS
from helix_runners.command.failures import CommandError
from helix_runners.command.media import HEAD_BYTES, is_safetensors, media_of
from helix_runners.command.settings import CommandSettings
from helix_runners.work import Job

MOST_ENTRIES = 10_000  # looked at in a folder
MOST_DEPTH = 64
STORE_S = 60.0  # how long a result waits for a store that does not answer
RETRY_S = 0.5
UNWANTED = re.compile(r"[^A-Za-z0-9._-]+")
MOST_NAME_CHARS = 100


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """A file that may be stored."""

    parts: tuple[str, ...]
    """Its path in the folder."""
    size: int
    media: str
    purpose: FilePurpose

    @property
    def name(self) -> str:
        """Its name as others may see it: letters, digits and ._- alone."""
        return UNWANTED.sub("_", self.parts[-1])[-MOST_NAME_CHARS:].lstrip(".") or "file"


class Artefacts:
    """Collects the results of tasks."""

    def __init__(self, files: Files, settings: CommandSettings) -> None:
        self._files = files
        self._settings = settings

    async def collect(self, job: Job, folder: Path) -> list[str]:
        """Store what the program left and return the ids, the main result first.

        Raises CommandError: `artefact_refused` or `artefact_missing`, and which and why.
        """
        pattern = self._settings.collect or _usual(job)
        if pattern is None:
            return []
        found = await asyncio.to_thread(self._find, job, folder, pattern.split("/"))
        found.sort(key=lambda each: (_place(each), each.parts))
        _check_complete(job, found, pattern)
        return [await self._store(job, folder, each) for each in found]

    def _find(self, job: Job, folder: Path, pattern: Sequence[str]) -> list[Artefact]:
        found: list[Artefact] = []
        root = _open_folder(folder)
        try:
            for parts in _walk(root, deep="**" in pattern, depth=len(pattern)):
                if not matches(parts, pattern):
                    continue
                if len(found) == self._settings.most_files:
                    raise refused("/".join(parts), f"more than {len(found)} files match (--most-files)")
                found.append(self._look(job, root, parts))
        finally:
            os.close(root)
        return found

    def _look(self, job: Job, root: int, parts: tuple[str, ...]) -> Artefact:
        where = "/".join(parts)
        most = self._settings.most_file_bytes
        with os.fdopen(_open_regular(root, parts), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise refused(where, f"{size} bytes, allowed are {most} (--most-file-bytes)")
            head = file.read(HEAD_BYTES)
        media = media_of(head, whole=len(head) == size)
        if job.state.mode == "finetune" and parts[-1] in (WEIGHTS, CONFIG):
            if parts[-1] == WEIGHTS and not is_safetensors(head, size):
                raise refused(where, "it is not in the safetensors format")
            if parts[-1] == CONFIG and media != "application/json":
                raise refused(where, "it is not JSON")
            return Artefact(parts=parts, size=size, media=media, purpose="adapter")
        picture = job.state.type == "image" and media.startswith("image/")
        return Artefact(parts=parts, size=size, media=media, purpose="image" if picture else "artefact")

    async def _store(self, job: Job, folder: Path, artefact: Artefact) -> str:
        """Store it, again and again for a while: the work that made it is done, and must not be lost to a pause."""
        deadline = asyncio.get_running_loop().time() + STORE_S
        while True:
            root = _open_folder(folder)
            try:
                descriptor = _open_regular(root, artefact.parts)
            finally:
                os.close(root)
            with io.BufferedReader(_Beginning(descriptor, artefact.size)) as source:
                try:
                    return await self._files.put(
                        cast(BinaryIO, source),
                        owner=job.state.owner,
                        name=artefact.name,
                        media=artefact.media,
                        purpose=artefact.purpose,
                        session=job.session,
                    )
                except Unavailable:
                    if asyncio.get_running_loop().time() > deadline:
                        raise
            await asyncio.sleep(RETRY_S)


class _Beginning(io.RawIOBase):
    """As much of a file as was there when it was looked at, should somebody still write to it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))[: self._left]
        count = self._file.readinto(view) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def refused(where: str, why: str) -> CommandError:
    """Return the failure of a file that is not taken."""
    shown = where[:200].encode("utf-8", "replace").decode()  # names of files are bytes, and need not be text
    return CommandError(f"{shown}: {why}", code="artefact_refused")


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a pattern, part by part; `**` stands for any number of folders."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return any(matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _walk(root: int, *, deep: bool, depth: int) -> Iterator[tuple[str, ...]]:
    """Yield the path of each entry that is no folder, at most `depth` parts long unless `deep`; follow no link."""
    seen = 0
    folders: list[tuple[str, ...]] = [()]
    while folders:
        parts = folders.pop()
        descriptor = _open(root, parts, os.O_DIRECTORY)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    seen += 1
                    path = (*parts, entry.name)
                    if seen > MOST_ENTRIES or len(path) > MOST_DEPTH:
                        what = f"{MOST_ENTRIES} entries" if seen > MOST_ENTRIES else f"{MOST_DEPTH} levels"
                        raise refused("/".join(path), f"the output folder has more than {what}")
                    if not entry.is_dir(follow_symlinks=False):
                        yield path
                    elif deep or len(path) < depth:
                        folders.append(path)
        finally:
            os.close(descriptor)


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise refused("the output folder", f"it is not there any more: {error.strerror}") from error


def _open(root: int, parts: Sequence[str], flags: int) -> int:
    """Open a path below `root` without following a link anywhere on the way."""
    descriptor = os.dup(root)
    for number, part in enumerate(parts, 1):
        wanted = flags if number == len(parts) else os.O_DIRECTORY
        try:
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | wanted, dir_fd=descriptor)
        except OSError as error:
            raise refused("/".join(parts), f"it cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _open_regular(root: int, parts: Sequence[str]) -> int:
    """Open a file to read. Raises CommandError if it is a link, a pipe, a device or not to be read."""
    where = "/".join(parts)
    try:
        descriptor = _open(root, parts, 0)
    except CommandError as error:
        if _is_link(root, parts):
            raise refused(where, "it is a symbolic link; write the file itself") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused(where, "it is not a regular file")
    return descriptor


def _is_link(root: int, parts: Sequence[str]) -> bool:
    folder = _open(root, parts[:-1], os.O_DIRECTORY)
    try:
        return stat.S_ISLNK(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:  # it is gone
        return False
    finally:
        os.close(folder)


def _usual(job: Job) -> str | None:
    """Return what to collect where nobody said it."""
    if job.state.mode == "finetune":
        return "adapter_*"
    return "*.png" if job.state.type == "image" else None


def _place(artefact: Artefact) -> int:
    """The main result comes first; an adapter's weights before its configuration."""
    if artefact.purpose == "adapter":
        return (WEIGHTS, CONFIG).index(artefact.parts[-1])
    return 2 if artefact.purpose == "image" else 3


def _check_complete(job: Job, found: Sequence[Artefact], pattern: str) -> None:
    """A picture that is none, or half an adapter, is no result, however well the program ended."""
    there = ", ".join(f"{each.name} ({each.media})" for each in found) or "nothing"
    if job.state.type == "image" and not any(each.purpose == "image" for each in found):
        raise _missing("no picture", pattern, there)
    if job.state.mode == "finetune":
        names = [each.parts[-1] for each in found if each.purpose == "adapter"]
        for wanted in (WEIGHTS, CONFIG):
            if names.count(wanted) != 1:
                raise _missing(f"not exactly one {wanted}", pattern, there)


def _missing(what: str, pattern: str, there: str) -> CommandError:
    return CommandError(
        f"the program ended well but left {what} in HELIX_OUTPUT_DIR; {pattern} found {there}",
        code="artefact_missing",
    )
