"""The engine that runners use: one thread computes, any number of tasks stream."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial

import msgspec
import structlog

from helix_es.core.errors import EngineError, HelixError, PromptTooLong
from helix_es.core.events import Message
from helix_runners.engine.multiplexer import Multiplexer, Output, busy
from helix_runners.engine.port import Adapter, EngineStats, Finished, Piece, Sampling
from helix_runners.engine.prompt import ChatPrompt
from helix_runners.engine.stream import Item, Stream
from helix_runners.engine.turn import Turn
from helix_runners.faults import OUT_OF_MEMORY, collect, is_out_of_memory

log = structlog.get_logger(__name__)

FAILED_STEPS_BEFORE_STOP = 3  # once may be memory; three in a row is a device that does not come back

CLOSED = "the engine was closed"
NOTHING_DONE = Finished(reason="cancelled", prompt_tokens=0, cached_tokens=0, completion_tokens=0)

Deliveries = list[tuple[Stream, Item]]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is made of."""

    multiplexer: Multiplexer
    prompt: ChatPrompt
    context_tokens: int
    """Tokens that prompt and answer may have together."""
    ends: frozenset[int]
    """Tokens that end an answer."""


class PackedEngine:
    """Implements TextEngine. The model is loaded and computed in one thread, and in no other.

    That is for safety and for speed: OpenMP keeps a team of threads for each thread that ever computed, and
    as soon as there are more than cores it puts them to sleep between operations: half the speed.
    """

    def __init__(self, load: Callable[[], Parts]) -> None:
        """Start the thread and wait until `load` has returned in it. Raises what `load` raises."""
        self._preparing: dict[str, Stream] = {}
        """By session, the streams whose prompt is being tokenised."""
        self._streams: dict[Turn, Stream] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopped: str | None = None
        """Why the engine computes no more."""
        self._failed_steps = 0
        loaded: Future[Parts] = Future()
        # a daemon, so that a program that fails without closing can end; stopped by atexit, since torch in
        # a daemon thread that outlives the interpreter crashes it
        self._thread = threading.Thread(
            target=self._work, args=(load, loaded), name="helix-engine", daemon=True
        )
        self._thread.start()
        parts = loaded.result()
        self._prompt = parts.prompt
        self._context_tokens = parts.context_tokens
        self._ends = parts.ends
        atexit.register(self._stop_and_wait)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._context_tokens

    @property
    def stopped(self) -> str | None:
        """Why the engine computes no more, None while it does."""
        return self._stopped

    async def generate(
        self,
        session: str,
        messages: Sequence[Message],
        sampling: Sampling,
        adapter: Adapter | None = None,
    ) -> AsyncGenerator[Piece | Finished, None]:
        """Stream the answer to `messages`; the last item is `Finished`. See TextEngine.generate."""
        self._refuse_if_stopped()
        stream = Stream(asyncio.get_running_loop())
        prompt = await self._prepare(session, messages, stream)
        turn = self._turn(session, prompt, sampling, adapter)
        if not stream.complete:
            self._post(partial(self._submit, turn, stream))
        try:
            while True:
                item = await stream.take()
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            if not stream.complete:
                self._post_if_running(partial(self._cancel_turn, turn))

    async def cancel(self, session: str) -> None:
        """End the generation of `session` at the next step; its stream ends with reason `cancelled`."""
        if session in self._preparing:
            self._preparing[session].put(NOTHING_DONE)
        self._post_if_running(lambda: self._deliver(self._multiplexer.cancel_session(session)))

    async def forget(self, session: str) -> None:
        """Drop what is kept of `session`, at the end of its turn if it has one."""
        self._post_if_running(lambda: self._multiplexer.forget(session))

    def stats(self) -> EngineStats:
        """What the engine held after its last step."""
        return self._stats

    async def close(self) -> None:
        """Stop after the step that runs; generations that are not over end with EngineError."""
        self._post_if_running(partial(self._stop, CLOSED))
        await asyncio.to_thread(self._thread.join)
        atexit.unregister(self._stop_and_wait)

    # The caller's side

    async def _prepare(self, session: str, messages: Sequence[Message], stream: Stream) -> list[int]:
        """Tokenise in a thread of its own: a long conversation must not hold up those that stream."""
        if session in self._preparing:
            raise busy(session)
        self._preparing[session] = stream
        try:
            return await asyncio.to_thread(self._prompt.encode, messages)
        finally:
            del self._preparing[session]

    def _turn(self, session: str, prompt: list[int], sampling: Sampling, adapter: Adapter | None) -> Turn:
        room = self._context_tokens - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, the context {self._context_tokens} including at least "
                "one of the answer: shorten it or start a new session"
            )
        fitting = msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room))
        decode = self._prompt.decode
        return Turn(session, prompt, fitting, decode=decode, ends=self._ends, adapter=adapter)

    def _refuse_if_stopped(self) -> None:
        if self._stopped is not None:
            raise EngineError(f"{self._stopped}; open a new engine", code="engine_stopped")

    def _post(self, command: Callable[[], None]) -> None:
        """Have `command` run in the engine's thread between two steps, in order."""
        with self._wake:
            self._refuse_if_stopped()
            self._inbox.append(command)
            self._wake.notify()

    def _post_if_running(self, command: Callable[[], None]) -> None:
        """Like `_post`, for what a stopped engine has done already."""
        with contextlib.suppress(EngineError):
            self._post(command)

    def _stop_and_wait(self) -> None:
        self._post_if_running(partial(self._stop, CLOSED))
        self._thread.join()

    # The engine's thread

    def _work(self, load: Callable[[], Parts], loaded: Future[Parts]) -> None:
        try:
            parts = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        self._multiplexer = parts.multiplexer
        self._stats = parts.multiplexer.stats()
        loaded.set_result(parts)
        reason = "the engine's thread ended"
        try:
            self._serve()
        except BaseException as error:
            reason = f"the engine failed: {error!r}"
            log.exception("engine.failed")
        finally:
            self._finish(reason)

    def _serve(self) -> None:
        while self._stopped is None:
            for command in self._commands():
                command()
            if self._stopped is None and self._multiplexer.busy:
                self._step()
            self._stats = self._multiplexer.stats()

    def _commands(self) -> list[Callable[[], None]]:
        """What was posted; waits only if there is nothing to compute."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._multiplexer.busy)
            commands = list(self._inbox)
            self._inbox.clear()
            return commands

    def _step(self) -> None:
        try:
            self._deliver(self._multiplexer.step())
            self._failed_steps = 0
            return
        except Exception as error:  # whatever torch raises: the turns end, the engine goes on
            self._failed_steps += 1
            log.warning("engine.step_failed", error=repr(error), in_a_row=self._failed_steps)
            self._multiplexer.fail()
            said, full = str(error), is_out_of_memory(error)
        if full:  # only now are the error's frames gone, which held the step's tensors
            collect()
        if self._failed_steps >= FAILED_STEPS_BEFORE_STOP:  # before anybody can see the last of them
            self._stop(f"the engine stopped after {self._failed_steps} failed steps, the last: {said}")
        over = [turn for turn in self._streams if turn not in self._multiplexer]
        self._fail(
            over, f"the step could not be computed: {said}", OUT_OF_MEMORY if full else EngineError.code
        )

    def _submit(self, turn: Turn, stream: Stream) -> None:
        self._streams[turn] = stream
        try:
            if self._stopped is not None:
                raise EngineError(self._stopped, code="engine_stopped")
            self._multiplexer.submit(turn)
        except HelixError as error:
            self._give([(self._streams.pop(turn), error)])

    def _cancel_turn(self, turn: Turn) -> None:
        self._deliver(self._multiplexer.cancel(turn))

    def _deliver(self, outputs: list[Output]) -> None:
        deliveries: Deliveries = []
        for turn, item in outputs:
            stream = self._streams.pop(turn) if isinstance(item, Finished) else self._streams[turn]
            deliveries.append((stream, item))
        self._give(deliveries)

    def _fail(self, turns: Collection[Turn], message: str, code: str) -> None:
        self._give([(self._streams.pop(turn), EngineError(message, code=code)) for turn in turns])

    def _give(self, deliveries: Deliveries) -> None:
        """Hand over everything of a step with one call for each event loop: waking a loop is not free."""
        self._stats = self._multiplexer.stats()  # before anybody can see the outcome
        by_loop: dict[asyncio.AbstractEventLoop, Deliveries] = defaultdict(list)
        for stream, item in deliveries:
            by_loop[stream.loop].append((stream, item))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, items)
            except RuntimeError:  # the loop is closed: nobody reads these any more
                for stream, _ in items:
                    self._abandon(stream)

    def _abandon(self, stream: Stream) -> None:
        for turn in [turn for turn, other in self._streams.items() if other is stream]:
            del self._streams[turn]
            self._multiplexer.cancel(turn)

    def _stop(self, reason: str) -> None:
        with self._wake:
            self._stopped = self._stopped or reason

    def _finish(self, reason: str) -> None:
        """Nothing is computed any more: whoever waits must hear of it."""
        self._stop(reason)
        with self._wake:
            left = list(self._inbox)
            self._inbox.clear()
        for command in left:
            command()
        self._fail(list(self._streams), self._stopped or reason, "engine_stopped")


def _put_all(items: Deliveries) -> None:
    for stream, item in items:
        stream.put(item)
