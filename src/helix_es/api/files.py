"""Routes of files: datasets in, checked line by line; pictures, adapters and datasets out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from litestar import Controller, get, post
from litestar.datastructures import UploadFile
from litestar.params import Parameter
from litestar.response import Stream

from helix_es.api.owner import owner_of
from helix_es.api.services import Services
from helix_es.api.sessions import Web
from helix_es.api.views import instant
from helix_es.core.dataset import Summary, check
from helix_es.core.errors import HelixError, Rejected
from helix_es.jetstream.files import FileInfo, FilePurpose

NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
INLINE = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp"}
)  # what a browser may draw; all else is bytes
FORM_BYTES = 1 << 16  # what a multipart body has around its file


class FileTooLarge(HelixError):
    """The file is larger than [limits] file_bytes; make it smaller, or have the limit raised."""

    code = "file_too_large"


class FileView(msgspec.Struct, kw_only=True):
    """A file, without its content."""

    file_id: str
    name: str
    media_type: str
    purpose: str
    size: int
    sha256: str
    created_at: str
    session_id: str | None
    """The session that made it; None: it was uploaded."""
    dataset: Summary | None = None
    """What the upload of a dataset found in it."""


class FilePage(msgspec.Struct, kw_only=True):
    """Files, newest first."""

    object: Literal["list"] = "list"
    data: list[FileView]
    has_more: bool


class FileRoutes(Controller):
    """POST and GET under /api/v1/files."""

    path = "/files"
    tags = ("files",)

    @post("/", summary="Upload a dataset (multipart: file, purpose)")
    async def upload(self, services: Services, request: Web) -> FileView:
        owner = owner_of(request, services.settings.auth)
        file, purpose = await uploaded(request)
        try:
            return await _store(services, file, purpose or "dataset", owner)
        finally:
            await file.close()

    @get("/", summary="List files, newest first")
    async def page(
        self,
        services: Services,
        request: Web,
        purpose: FilePurpose | None = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
        after: str | None = None,
    ) -> FilePage:
        owner = owner_of(request, services.settings.auth)
        mine = [each for each in await services.files.list(owner) if purpose in (None, each.purpose)]
        mine.reverse()
        start = 0 if after is None else _after(mine, after)
        shown = mine[start : start + limit]
        return FilePage(data=[file_view(each) for each in shown], has_more=len(mine) > start + limit)

    @get("/{file:str}", summary="What is known of a file")
    async def one(self, file: str, services: Services, request: Web) -> FileView:
        return file_view(await services.files.info(file, owner_of(request, services.settings.auth)))

    @get("/{file:str}/content", summary="Download a file")
    async def content(self, file: str, services: Services, request: Web) -> Stream:
        info = await services.files.info(file, owner_of(request, services.settings.auth))
        return download(info, services.files.read(file))


async def uploaded(request: Web) -> tuple[UploadFile, Any]:
    """Return the field `file` of a form, and the field `purpose` or None. Raises Rejected if there is no file."""
    try:
        form = await request.form()
    except LookupError as error:  # a field names a charset that nobody knows
        raise Rejected("invalid_file", f"the form cannot be read: {error}") from error
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Rejected("invalid_file", "file: is missing; send multipart/form-data with a field 'file'")
    return file, form.get("purpose")


def _after(files: list[FileInfo], file: str) -> int:
    return next((index + 1 for index, each in enumerate(files) if each.id == file), len(files))


async def _store(services: Services, file: UploadFile, purpose: Any, owner: str) -> FileView:
    if purpose != "dataset":
        raise Rejected("invalid_file", f"purpose: {str(purpose)[:40]!r} is not allowed; it must be 'dataset'")
    name = checked_name(file.filename)
    size = await asyncio.to_thread(size_of, file)
    refuse_larger(name, size, services.settings.limits.file_bytes)
    summary = await asyncio.to_thread(check, file.file)
    await file.seek(0)
    stored = await services.files.put(
        file.file,  # type: ignore[arg-type]  # a spooled file reads as any binary file does
        owner=owner,
        name=name,
        media="application/jsonl",
        purpose="dataset",
    )
    view = file_view(await services.files.info(stored))
    view.dataset = summary
    return view


def size_of(file: UploadFile) -> int:
    """Return the bytes of an upload and leave it at its beginning."""
    size = file.file.seek(0, 2)
    file.file.seek(0)
    return size


def refuse_larger(name: str, size: int, most: int) -> None:
    """Raise FileTooLarge if a file has more bytes than allowed, Rejected if it has none."""
    if size > most:
        raise FileTooLarge(f"file {name}: {size} bytes; at most {most} are allowed")
    if size == 0:
        raise Rejected("invalid_file", f"file {name}: is empty")


def checked_name(name: str) -> str:
    """Return a file's name. Raises Rejected for one that could be more than a name."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise Rejected(
            "invalid_file",
            f"file name {name[:80]!r}: must be 1 to 200 characters without slashes or controls",
        )
    return name


def file_view(info: FileInfo) -> FileView:
    """Return what users see of a file."""
    return FileView(
        file_id=info.id,
        name=info.name,
        media_type=info.media,
        purpose=info.purpose,
        size=info.size,
        sha256=info.sha256,
        created_at=instant(info.created_ms) or "",
        session_id=info.session or None,
    )


def download(info: FileInfo, content: AsyncIterator[bytes]) -> Stream:
    """Return the response that streams a file; nothing of it can run in a browser."""
    safe = info.media in INLINE
    headers = {
        "Content-Length": str(info.size),
        "Content-Disposition": f"{'inline' if safe else 'attachment'}; filename*=UTF-8''{quote(info.name, safe='')}",
        "ETag": f'"{info.sha256}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return Stream(content, media_type=info.media if safe else "application/octet-stream", headers=headers)
