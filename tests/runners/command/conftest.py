"""Everything here runs on uvloop, as serving commands do; processes and pipes also on asyncio's own loop."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from helix_es.core.catalogue import BUILTIN
from helix_es.core.events import Workload
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_runners.command.settings import CommandSettings
from helix_runners.command.work import CommandWork
from tests.runners.command.kit import Shelf, Start


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_runners.command.resident.RESTART_S", 0.02)
    monkeypatch.setattr("helix_runners.command.resident.SETTLE_S", 0.1)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Make a loaded work, closed at the end."""
    made: list[CommandWork] = []

    async def begin(
        *command: str, files: Files | None = None, slug: str = "smollm2", **more: Any
    ) -> CommandWork:
        settings = CommandSettings(command=list(command), **{"grace_s": 0.3, "time_limit_s": 20, **more})
        work = CommandWork(files or Shelf(), settings)
        made.append(work)
        await work.load(Workload("create", "text", slug), BUILTIN[slug])
        return work

    yield begin
    for work in made:
        await work.close()


@pytest.fixture
def files(connection: Connection) -> Files:
    """The real store."""
    numbers = itertools.count(1)
    new_id: Callable[[], str] = lambda: f"f{next(numbers)}"  # noqa: E731
    return Files(connection, new_id=new_id)
