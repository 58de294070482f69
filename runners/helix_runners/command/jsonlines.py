"""Protocol `json`: one program that stays, a JSON object a line both ways, several tasks at once."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta

from helix_es.core.events import Usage
from helix_runners.command.failures import CommandError, time_limit, too_large
from helix_runners.command.folder import seed_of
from helix_runners.command.process import Program, Programs
from helix_runners.command.resident import Resident
from helix_runners.command.settings import CommandSettings
from helix_runners.command.speech import Channel, Done, Speech, Step
from helix_runners.command.talk import Request

log = structlog.get_logger(__name__)

MOST_DETAIL_BYTES = 16_384  # a step is a fact in the log
MOST_MESSAGE_CHARS = 4_000
LINE_ROOM_BYTES = 65_536  # beside a whole answer in one line
CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

Number = Annotated[int, Meta(ge=0, le=2**53)]


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: Number = 0
    cached_tokens: Number = 0
    completion_tokens: Number = 0


class _Error(msgspec.Struct, frozen=True):
    message: str
    code: str = CommandError.code


class _Said(msgspec.Struct, frozen=True):
    """One line of the program."""

    id: str
    text: str = ""
    step: Number | None = None
    steps: Number = 0
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    done: bool = False
    usage: _Usage = _Usage()
    finish_reason: Annotated[str, Meta(min_length=1, max_length=64)] = "stop"
    error: _Error | None = None


class _Addressed(msgspec.Struct, frozen=True):
    id: str


class JsonLines:
    """`Talk` with a program that does several tasks at once."""

    def __init__(self, programs: Programs, settings: CommandSettings) -> None:
        self._settings = settings
        self._resident = Resident(programs, settings, self)
        self._numbers = itertools.count(1)
        self._channels: dict[str, Channel] = {}
        self._said = msgspec.json.Decoder(_Said)
        self._line = bytearray()
        self._stray_bytes = 0
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def open(self, env: dict[str, str]) -> None:
        """Start the program; see `Talk.open`."""
        await self._resident.open(env)

    async def converse(self, request: Request, speech: Speech) -> Done:
        """Send the task and wait for its last line; see `Talk.converse`."""
        program = await self._resident.program()
        if not self._channels:
            program.errors.clear()  # what it said while others were served is not this one's to read
        job = request.job
        name = f"{job.session}.{job.turn.turn}.{job.turn.attempt}.{next(self._numbers)}"
        channel = self._channels[name] = Channel(self._settings.most_output_bytes)
        try:
            async with time_limit(self._settings.time_limit_s):
                program.stdin.send(_task(name, request))
                done = await channel.relay(speech)
        finally:
            await self._release(name, channel, program)
        self._resident.answered()
        return done

    async def _release(self, name: str, channel: Channel, program: Program) -> None:
        """Forget the task; if the program still works at it, have it stop first."""
        if channel.ended.is_set():
            del self._channels[name]
            return
        withdrawing = asyncio.create_task(self._withdraw(name, channel, program))
        self._withdrawing.add(withdrawing)
        withdrawing.add_done_callback(self._withdrawing.discard)
        await asyncio.shield(withdrawing)

    async def _withdraw(self, name: str, channel: Channel, program: Program) -> None:
        program.stdin.send(_line({"id": name, "cancel": True}))
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await channel.ended.wait()
        except TimeoutError:
            log.warning("program_did_not_stop", task=name)
            await self._resident.restart(program)
        finally:
            del self._channels[name]

    @property
    def broken(self) -> str | None:
        """See `Resident`."""
        return self._resident.broken

    async def close(self) -> None:
        """End the program."""
        await self._resident.close()
        self.died(CommandError("the runner stops"))
        if self._withdrawing:
            await asyncio.wait(self._withdrawing)

    # -- what the program says

    def begin(self) -> None:
        """See `Listener.begin`."""
        self._line.clear()
        self._stray_bytes = 0

    def hear(self, data: bytes) -> None:
        """See `Listener.hear`."""
        most = self._settings.most_output_bytes
        self._line += data
        *lines, rest = self._line.split(b"\n") if b"\n" in data else [self._line]
        self._line = rest
        for line in lines:
            self._take(bytes(line))
        if len(rest) > most + LINE_ROOM_BYTES or self._stray_bytes > most:
            raise too_large(most)

    def _take(self, line: bytes) -> None:
        try:
            said = self._said.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._complain(line, str(error))
            return
        channel = self._channels.get(said.id)
        if channel is None:
            self._stray(line)
            return
        self._stray_bytes = 0
        if said.text:
            channel.push(said.text)
        if said.step is not None:
            if len(msgspec.json.encode(said.detail)) > MOST_DETAIL_BYTES:
                channel.fail(_bad(f"detail: longer than {MOST_DETAIL_BYTES} bytes"))
            else:
                channel.step(Step(step=said.step, steps=said.steps, detail=said.detail))
        if said.error is not None:
            code = said.error.code if CODE.fullmatch(said.error.code) else CommandError.code
            channel.end(CommandError(said.error.message[:MOST_MESSAGE_CHARS], code=code))
        elif said.done:
            usage = Usage(
                prompt_tokens=said.usage.prompt_tokens,
                cached_tokens=said.usage.cached_tokens,
                completion_tokens=said.usage.completion_tokens,
            )
            channel.end(Done(usage=usage, finish_reason=said.finish_reason))

    def _complain(self, line: bytes, error: str) -> None:
        """A line that is none of the protocol's: its task's failure, if it names one, else a stray print."""
        try:
            channel = self._channels.get(msgspec.json.decode(line, type=_Addressed).id)
        except (msgspec.DecodeError, UnicodeDecodeError):
            channel = None
        if channel is None:
            self._stray(line)
        else:
            channel.fail(_bad(error))

    def _stray(self, line: bytes) -> None:
        if not self._stray_bytes:
            log.info("program_said_something_else", line=line[:200].decode("utf-8", "replace"))
        self._stray_bytes += len(line) + 1

    def died(self, error: CommandError) -> None:
        """See `Listener.died`."""
        for channel in self._channels.values():
            channel.end(CommandError(str(error), code=error.code))


def _bad(error: str) -> CommandError:
    return CommandError(f"the program sent a line that is not of the protocol: {error}", code="bad_answer")


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _task(name: str, request: Request) -> bytes:
    job, inputs = request.job, request.inputs
    return _line(
        {
            "id": name,
            "session": job.session,
            "turn": job.turn.turn,
            "attempt": job.turn.attempt,
            "mode": job.state.mode,
            "type": job.state.type,
            "model": request.slug,
            "prompt": request.prompt,
            "system": job.state.system,
            "messages": job.messages,
            "params": job.params,
            "seed": seed_of(job),
            "output_dir": str(request.output),
            "dataset": None if inputs.dataset is None else str(inputs.dataset),
            "input_image": None if inputs.image is None else str(inputs.image),
            "adapter_dir": None if inputs.adapter is None else str(inputs.adapter),
        }
    )
