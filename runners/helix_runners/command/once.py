"""Protocol `once`: a process for each task, its prompt on stdin, its answer what it writes until it ends."""

from __future__ import annotations

import codecs

from helix_runners.command.failures import CommandError, exit_words, failed, time_limit
from helix_runners.command.folder import task_environment
from helix_runners.command.process import Program, Programs
from helix_runners.command.settings import CommandSettings
from helix_runners.command.speech import Done, Speech
from helix_runners.command.talk import Request

MOST_FAILED_STARTS = 3  # in a row: a runner that fails every task at once would draw all of them


class Once:
    """`Talk` with processes that come and go."""

    def __init__(self, programs: Programs, settings: CommandSettings) -> None:
        self._programs = programs
        self._settings = settings
        self._env: dict[str, str] = {}
        self._failed_starts = 0
        self._last_failure = ""

    async def open(self, env: dict[str, str]) -> None:
        """Nothing runs before there is a task."""
        self._env = env

    async def converse(self, request: Request, speech: Speech) -> Done:
        """Run the program once; see `Talk.converse`."""
        env = {**self._env, **task_environment(request.job, request.output, request.inputs)}
        program = self._start(env)
        try:
            async with time_limit(self._settings.time_limit_s):
                program.stdin.send(request.prompt.encode("utf-8", "replace"))
                program.stdin.finish()
                await _stream(program, speech)
                code = await program.exit_code()
        finally:
            await program.end()
        if code:
            raise failed(exit_words(code), program.errors.text())
        return Done()

    def _start(self, env: dict[str, str]) -> Program:
        try:
            program = self._programs.start(env)
        except CommandError as error:
            self._failed_starts += 1
            self._last_failure = str(error)
            raise
        self._failed_starts = 0
        return program

    @property
    def broken(self) -> str | None:
        """Set when the program cannot be started any more."""
        return self._last_failure if self._failed_starts >= MOST_FAILED_STARTS else None

    async def close(self) -> None:
        """Each task ends its own process."""


async def _stream(program: Program, speech: Speech) -> None:
    """Give out what the program writes as it comes; what is not UTF-8 is replaced, no character is split."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := await program.stdout.read():
        await speech.say(decoder.decode(data))
    await speech.say(decoder.decode(b"", final=True))
