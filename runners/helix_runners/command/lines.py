"""Protocol `lines`: one program that stays, a prompt a line, an answer that ends at a line of its own."""

from __future__ import annotations

import asyncio
import codecs
import io

from helix_runners.command.failures import CommandError, time_limit, too_large
from helix_runners.command.process import Programs
from helix_runners.command.prompt import one_line
from helix_runners.command.resident import Resident
from helix_runners.command.settings import CommandSettings
from helix_runners.command.speech import Channel, Done, Speech
from helix_runners.command.talk import Request


class LineCutter:
    """Finds the line that ends an answer in pieces of text; the line break before it is not the answer's."""

    def __init__(self, end: str) -> None:
        self._end = end
        self._break = ""
        """A line break that belongs to the answer only if another line follows."""
        self._line = ""
        """The beginning of a line that may still be the end line."""
        self._flowing = False
        """Whether the line at hand cannot be the end line, so that it is given out as it comes."""
        self.ended = False

    def push(self, text: str) -> str:
        """Return what of the answer is certain after `text`. What follows the end line is dropped."""
        out: list[str] = []
        *lines, last = text.split("\n")
        for part in lines:
            if self.ended:
                break
            self._whole_line(part, out)
        if not self.ended:
            self._begun_line(last, out)
        return "".join(out)

    def _whole_line(self, part: str, out: list[str]) -> None:
        if self._flowing:
            out.append(part)
        elif self._line + part == self._end:
            self.ended = True
            return
        else:
            out += [self._break, self._line, part]
        self._break, self._line, self._flowing = "\n", "", False

    def _begun_line(self, part: str, out: list[str]) -> None:
        if self._flowing:
            out.append(part)
        elif self._end.startswith(self._line + part):
            self._line += part
        else:
            out += [self._break, self._line, part]
            self._break, self._line, self._flowing = "", "", True


class Lines:
    """`Talk` with a program that answers one prompt after the other."""

    def __init__(self, programs: Programs, settings: CommandSettings) -> None:
        self._settings = settings
        self._resident = Resident(programs, settings, self)
        self._turn = asyncio.Lock()
        self._channel: Channel | None = None
        self._cutter = LineCutter(settings.end_line)
        self._decoder = _decoder()
        self._stray_bytes = 0

    async def open(self, env: dict[str, str]) -> None:
        """Start the program; see `Talk.open`."""
        await self._resident.open(env)

    async def converse(self, request: Request, speech: Speech) -> Done:
        """Send the prompt as a line and wait for the end of the answer; see `Talk.converse`."""
        if request.inputs.any:
            raise CommandError(
                "a program that is spoken to in lines cannot be given a dataset, a picture or an adapter; "
                "run it with --protocol once or json",
                code="inputs_unsupported",
            )
        async with self._turn:
            program = await self._resident.program()
            channel = self._channel = Channel(self._settings.most_output_bytes)
            self._cutter = LineCutter(self._settings.end_line)
            program.errors.clear()  # what it said while others were served is not this one's to read
            done: Done | None = None
            try:
                async with time_limit(self._settings.time_limit_s):
                    program.stdin.send(f"{one_line(request.prompt)}\n".encode("utf-8", "replace"))
                    done = await channel.relay(speech)
            finally:
                self._channel, self._stray_bytes = None, 0
                if done is None:
                    await self._resident.restart(program)
            self._resident.answered()
            return done

    @property
    def broken(self) -> str | None:
        """See `Resident`."""
        return self._resident.broken

    async def close(self) -> None:
        """End the program."""
        await self._resident.close()

    # -- what the program says

    def begin(self) -> None:
        """See `Listener.begin`."""
        self._decoder = _decoder()
        self._stray_bytes = 0

    def hear(self, data: bytes) -> None:
        """See `Listener.hear`. What is said without a question is dropped."""
        text = self._decoder.decode(data)
        channel = self._channel
        if channel is None or channel.ended.is_set():
            self._stray_bytes += len(data)
            if self._stray_bytes > self._settings.most_output_bytes:
                raise too_large(self._settings.most_output_bytes)
            return
        channel.push(self._cutter.push(text))
        if self._cutter.ended:
            channel.end(Done())

    def died(self, error: CommandError) -> None:
        """See `Listener.died`."""
        if self._channel is not None:
            self._channel.end(error)


def _decoder() -> io.IncrementalNewlineDecoder:
    """Return what makes text of bytes, piece by piece, with one kind of line break."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
