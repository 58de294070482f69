"""A program that stays: started, waited for, started again when it dies, given up after three deaths in a row."""

from __future__ import annotations

import asyncio
import codecs
from typing import Protocol

import structlog

from helix_es.core.errors import EngineError
from helix_runners.command.failures import CommandError, exit_words, failed
from helix_runners.command.process import Program, Programs
from helix_runners.command.settings import CommandSettings

log = structlog.get_logger(__name__)

MOST_DEATHS = 3  # in a row, without an answer in between
RESTART_S = 0.2  # before a new start, doubled with each death
SETTLE_S = 0.3  # a program that does not say when it is ready must at least live so long
EXIT_S = 1.0  # between the end of its stdout and its own
MOST_LINE_CHARS = 65_536  # of a banner: more of a line is not looked at


class Listener(Protocol):
    """Whoever understands what the program says."""

    def begin(self) -> None:
        """A new program is ready: nothing of the old one counts."""

    def hear(self, data: bytes) -> None:
        """Take what it wrote. Raises CommandError if it is too much: the program is then ended."""

    def died(self, error: CommandError) -> None:
        """The program is gone: whatever it was doing has failed."""


class Resident:
    """Keeps one program ready."""

    def __init__(self, programs: Programs, settings: CommandSettings, listener: Listener) -> None:
        self._programs = programs
        self._settings = settings
        self._listener = listener
        self._env: dict[str, str] = {}
        self._current: Program | None = None
        self._news = asyncio.Event()
        """Set while there is a program that is ready, or none will be."""
        self._ending = False
        """Whether we end the program ourselves: that is no death."""
        self._hung_up = False
        """Whether it reads no more what it is sent."""
        self._deaths = 0
        self._keeping: asyncio.Task[None] | None = None
        self.broken: str | None = None

    async def open(self, env: dict[str, str]) -> None:
        """Start the program. Raises EngineError if it does not become ready."""
        self._env = env
        try:
            program = await self._begin()
        except CommandError as error:
            raise EngineError(str(error)) from error
        self._keeping = asyncio.create_task(self._keep(program))
        self._keeping.add_done_callback(self._kept)

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        error = None if keeping.cancelled() else keeping.exception()
        if error is not None:  # a fault of ours: better to leave than to let turns wait for ever
            log.error("not_kept", exc_info=error)
            self._give_up(f"the runner failed to keep its program: {type(error).__name__}")
            self._listener.died(CommandError(str(self.broken)))

    def _give_up(self, why: str) -> None:
        self.broken = why
        self._news.set()

    async def program(self) -> Program:
        """Return the program when it is ready. Raises CommandError if it will not be."""
        while True:
            await self._news.wait()
            if self.broken is not None:
                raise CommandError(self.broken)
            if self._current is not None:
                return self._current

    def answered(self) -> None:
        """A task was done: deaths before it are forgiven."""
        self._deaths = 0

    async def restart(self, program: Program) -> None:
        """End `program`, if it has not ended, and have another one started, if that is not done already."""
        if program is self._current:
            self._ending = True
            self._gone()
        await program.end()

    def _gone(self) -> None:
        self._current = None
        if self.broken is None:
            self._news.clear()

    async def _begin(self) -> Program:
        program = self._programs.start(self._env)
        try:
            async with asyncio.timeout(self._settings.start_limit_s) as limit:
                await self._become_ready(program)
        except TimeoutError:
            await program.end()
            if not limit.expired():
                raise
            raise failed(
                f"the program was not ready within {self._settings.start_limit_s:g} s: "
                f"no line with {self._settings.ready_line!r}; see --ready-line and --start-limit-s",
                program.errors.text(),
            ) from None
        except BaseException:
            await program.end()
            raise
        self._listener.begin()
        program.stdin.on_broken = lambda: self._hang_up(program)
        self._ending, self._hung_up = False, False
        self._current = program
        self._news.set()
        return program

    async def _become_ready(self, program: Program) -> None:
        wanted = self._settings.ready_line
        if wanted is None:
            try:
                async with asyncio.timeout(SETTLE_S):
                    code = await program.exit_code()
            except TimeoutError:
                return
            await program.end()
            raise failed(f"the program ended at its start: {exit_words(code)}", program.errors.text())
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        line = ""
        while data := await program.stdout.read():
            *lines, line = (line + decoder.decode(data)).split("\n")
            if any(wanted in each for each in [*lines, line]):  # a prompt such as "> " ends in no line break
                return
            line = line[-MOST_LINE_CHARS:]
        await program.end()
        raise failed("the program ended before it was ready", program.errors.text())

    async def _keep(self, program: Program) -> None:
        """Hear what the program says until it dies, then start another; for ever, or until it is broken."""
        current: Program | None = program
        while True:
            if current is not None:
                flood = await self._listen(current)
                self._gone()  # whoever comes now waits for the next one
                asked, self._ending = self._ending, False
                error = flood or await self._describe_end(current)
                await current.end()
                self._listener.died(error)
                if not asked and not self._survives(error):
                    return
            if self._deaths:
                await asyncio.sleep(RESTART_S * 2 ** (self._deaths - 1))
            try:
                current = await self._begin()
            except CommandError as error:
                current = None
                if not self._survives(error):
                    return

    def _survives(self, error: CommandError) -> bool:
        """Count a death; return whether there may be another life."""
        self._deaths += 1
        log.warning("program_died", deaths=self._deaths, error=str(error))
        if self._deaths < MOST_DEATHS:
            return True
        self._give_up(f"the program died {self._deaths} times in a row; the last time: {error}")
        return False

    async def _listen(self, program: Program) -> CommandError | None:
        """Pass on what it says until that ends; return what was wrong with it, if the listener could not bear it."""
        try:
            while data := await program.stdout.read():
                self._listener.hear(data)
        except CommandError as error:
            return error
        return None

    async def _describe_end(self, program: Program) -> CommandError:
        """Say how a program ended whose stdout has ended, or that is not listened to any more."""
        try:
            async with asyncio.timeout(EXIT_S):
                how = f"ended: {exit_words(await program.exit_code())}"
        except TimeoutError:
            how = f"closed its {'stdin' if self._hung_up else 'stdout'}"
        await program.end()  # so that all of its stderr is there
        return failed(f"the program {how}", program.errors.text())

    def _hang_up(self, program: Program) -> None:
        """It does not read what it is sent, perhaps because it has just died: hear what is left, then see."""
        if program is self._current:
            self._hung_up = True
            program.stdout.cut()

    async def close(self) -> None:
        """End the program and start none again."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._current is not None:
            await self._current.end()
            self._current = None
        self._give_up("the runner stops")
