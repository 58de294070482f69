"""Any program as a kind of work: `Work` around a process for each task, or around one that stays."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, HelixError, Misconfigured, NotOurs
from helix_es.core.events import Failure, Workload
from helix_es.jetstream.files import Files
from helix_runners.command.artefacts import Artefacts
from helix_runners.command.folder import TaskFolder, handed_down, new_root
from helix_runners.command.jsonlines import JsonLines
from helix_runners.command.lines import Lines
from helix_runners.command.once import Once
from helix_runners.command.process import Guard, Programs
from helix_runners.command.prompt import render
from helix_runners.command.settings import CommandSettings, check_template, checked
from helix_runners.command.speech import Done, Speech
from helix_runners.command.talk import Request, Talk
from helix_runners.work import Job, Outcome, Output

TALKS: dict[str, type[Once] | type[Lines] | type[JsonLines]] = {
    "once": Once,
    "lines": Lines,
    "json": JsonLines,
}


class _Running:
    """What there is while a model is loaded."""

    def __init__(self, settings: CommandSettings, slug: str, model: Model) -> None:
        self.slug = slug
        self.template = model.template if settings.template is None else settings.template
        self.root = new_root()
        self.guard = Guard(self.root, settings.grace_s)
        self.programs = Programs(
            settings.command,
            self.guard,
            grace_s=settings.grace_s,
            most_stderr_bytes=settings.most_stderr_bytes,
        )
        self.talk: Talk = TALKS[settings.protocol](self.programs, settings)
        # One that is spoken to in lines cannot be told of a new folder: it has one, emptied for each task.
        self.shared = TaskFolder(self.root) if settings.protocol == "lines" else None

    async def close(self) -> None:
        """End every program; the guard removes the folders."""
        await self.talk.close()
        await self.programs.close()
        await self.guard.close()


class CommandWork:
    """`Work` that a program does."""

    def __init__(self, files: Files, settings: CommandSettings) -> None:
        """Raises Misconfigured if the settings make no sense."""
        self._files = files
        self._settings = checked(settings)
        self._artefacts = Artefacts(files, settings)
        self._free = asyncio.Semaphore(1 if settings.protocol == "lines" else settings.parallel)
        self._running: _Running | None = None
        self._turns: dict[str, asyncio.Timeout] = {}
        """What stops the turn of each session."""
        self._done = 0
        self._failed = 0

    async def load(self, workload: Workload, model: Model) -> None:
        """Find the program; start it and wait until it is ready, if it stays."""
        slug = workload.model
        find_program(self._settings.command[0])
        if self._settings.template is None:
            check_template(model.template, f"template of model {slug}")
        await self.close()
        running = self._running = _Running(self._settings, slug, model)
        env = handed_down(os.environ, slug)
        if running.shared is not None:
            env["HELIX_OUTPUT_DIR"] = str(running.shared.output)
        try:
            await running.talk.open(env)
        except BaseException:
            await self.close()
            raise

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Have the program do the turn."""
        speech = Speech(output, self._settings.most_output_bytes)
        try:
            async with asyncio.timeout(None) as stop:
                self._turns[job.session] = stop
                try:
                    return await self._outcome(job, speech)
                finally:
                    if self._turns.get(job.session) is stop:
                        del self._turns[job.session]
        except TimeoutError:
            if not stop.expired():
                raise
            return Outcome(output=speech.text, cancelled=True, first_token_ms=speech.first_token_ms)

    async def _outcome(self, job: Job, speech: Speech) -> Outcome:
        running = self._loaded()
        try:
            async with self._free:
                done, files = await self._do(job, speech, running)
        except NotOurs:
            raise
        except HelixError as error:
            self._failed += 1
            return Outcome(
                output=speech.text,
                error=Failure(code=error.code, message=str(error)),
                retry=self.broken is not None,  # the program is gone for good, whatever the task was
                first_token_ms=speech.first_token_ms,
            )
        self._done += 1
        return Outcome(
            output=speech.text,
            files=files,
            usage=done.usage,
            finish_reason=done.finish_reason,
            first_token_ms=speech.first_token_ms,
        )

    async def _do(self, job: Job, speech: Speech, running: _Running) -> tuple[Done, list[str]]:
        folder = TaskFolder(running.root)
        try:
            place = folder.output
            if running.shared is not None:
                await asyncio.to_thread(running.shared.empty)  # of what an earlier task left
                place = running.shared.output
            request = Request(
                job=job,
                slug=running.slug,
                prompt=render(running.template, job.messages, conversation=self._settings.conversation),
                output=place,
                inputs=await folder.bring(job, self._files),
            )
            done = await running.talk.converse(request, speech)
            return done, await self._artefacts.collect(job, place)
        finally:
            await asyncio.to_thread(folder.remove)

    async def cancel(self, session: str) -> None:
        """Stop the session's turn, wherever it is."""
        stop = self._turns.pop(session, None)
        if stop is not None:
            stop.reschedule(asyncio.get_running_loop().time())

    async def give_way(self, session: str) -> None:
        """What a program has done so far is its own."""

    async def forget(self, session: str) -> None:
        """Nothing is kept of a session."""

    @property
    def broken(self) -> str | None:
        """Why the program does no more."""
        return None if self._running is None else self._running.talk.broken

    def detail(self) -> dict[str, Any]:
        """What runs, and how it went."""
        programs = None if self._running is None else self._running.programs
        return {
            "protocol": self._settings.protocol,
            "pids": [] if programs is None else programs.pids,
            "running": len(self._turns),
            "done": self._done,
            "failed": self._failed,
            "last_exit_code": None if programs is None else programs.last_exit_code,
        }

    async def close(self) -> None:
        """End every program and remove every folder."""
        running, self._running = self._running, None
        if running is not None:
            await running.close()

    def _loaded(self) -> _Running:
        if self._running is None:
            raise EngineError("no model is loaded")
        return self._running


def find_program(name: str) -> str:
    """Return where a program is. Raises Misconfigured, and says what to do, if it cannot be run."""
    found = shutil.which(name)
    if found is not None:
        return found
    path = Path(name)
    if os.sep in name and path.is_file():
        raise Misconfigured(
            f"command {name}: is not executable; chmod +x it, or write its interpreter before it, "
            "as in `-- python program.py`"
        )
    where = "there" if os.sep in name else "on the PATH"
    raise Misconfigured(
        f"command {name}: there is no such program {where}; install it, give its whole path, or, if a shell is meant, "
        'write one: `-- sh -c "…"`'
    )
