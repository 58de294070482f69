"""The port between a command runner and the way that its program is spoken to."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from helix_runners.command.folder import Inputs
from helix_runners.command.speech import Done, Speech
from helix_runners.work import Job


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One task, ready for the program."""

    job: Job
    slug: str
    prompt: str
    """In its template."""
    output: Path
    """Where the program leaves its files."""
    inputs: Inputs


class Talk(Protocol):
    """A way to speak to a program."""

    async def open(self, env: dict[str, str]) -> None:
        """Be ready for tasks. Raises EngineError if the program does not become ready."""

    async def converse(self, request: Request, speech: Speech) -> Done:
        """Have the program do a task. Raises CommandError.

        When it ends in any way but by a result, nothing of the task goes on computing.
        """

    @property
    def broken(self) -> str | None:
        """Why no task can be done any more."""

    async def close(self) -> None:
        """End what runs; harmless if nothing does."""
