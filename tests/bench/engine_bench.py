"""How fast the text engine is: many sessions against one, a kept conversation against a new one, stalls."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import msgspec

from helix_es.core.events import Message
from helix_runners.engine.open import EngineSettings, open_engine
from helix_runners.engine.port import Adapter, Finished, Piece, Sampling, TextEngine

DECODE_TOKENS = 64
SESSIONS = 8
CONVERSATION_CHARS = 5_600  # about 1,450 tokens of SmolLM2
PARAGRAPH = (
    "The river begins in the hills, runs past the old mill and the orchard, "
    "and meets the sea near the lighthouse. "
)


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Decoding, prompts not counted; tokens per second."""

    alone: float
    together: float
    sessions: int
    ratio: float
    """Median over rounds of together / alone."""
    slowest_over_fastest: float
    """Of the sessions that decode together; the worst round."""


class SecondTurn(msgspec.Struct, frozen=True, kw_only=True):
    """Time to the first token of the second turn of a long conversation, seconds, medians."""

    prompt_tokens: int
    cached_tokens: int
    cold_s: float
    kept_s: float
    ratio: float


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """Four sessions decode while a long prompt arrives."""

    prompt_tokens: int
    worst_gap_s: float
    """Longest time that one of the four waited for its next token."""
    median_gap_s: float
    newcomer_first_token_s: float


class Trace(msgspec.Struct, kw_only=True):
    """When the pieces of one generation came, in seconds of the monotonic clock."""

    started_s: float
    at_s: list[float] = []
    tokens: list[int] = []
    text: str = ""
    finished: Finished | None = None

    @property
    def first_s(self) -> float:
        """Time to the first text."""
        return self.at_s[0] - self.started_s

    @property
    def rate(self) -> float:
        """Tokens per second after the first piece."""
        return (self.tokens[-1] - self.tokens[0]) / (self.at_s[-1] - self.at_s[0])

    def tokens_at(self, at_s: float) -> int:
        """Tokens that had come by then."""
        return max((tokens for tokens, came_s in zip(self.tokens, self.at_s, strict=True) if came_s <= at_s))

    def gaps_since(self, from_s: float) -> list[float]:
        """Seconds between neighbouring pieces that came after `from_s`."""
        pairs = zip(self.at_s, self.at_s[1:], strict=False)
        return [after - before for before, after in pairs if after > from_s]


async def run(
    engine: TextEngine,
    session: str,
    messages: Sequence[Message],
    max_tokens: int,
    adapter: Adapter | None = None,
) -> Trace:
    """Generate greedily to the end and note when each piece came."""
    trace = Trace(started_s=time.perf_counter())
    async for item in engine.generate(session, messages, Sampling(max_tokens=max_tokens), adapter):
        if isinstance(item, Piece):
            trace.at_s.append(time.perf_counter())
            trace.tokens.append(item.tokens)
            trace.text += item.text
        else:
            trace.finished = item
    await engine.forget(session)
    return trace


def rate_while_all_decode(traces: Sequence[Trace]) -> float:
    """Tokens per second of all, from the last first token to the first last one."""
    began_s = max(trace.at_s[0] for trace in traces)
    ended_s = min(trace.at_s[-1] for trace in traces)
    tokens = sum(trace.tokens_at(ended_s) - trace.tokens_at(began_s) for trace in traces)
    return tokens / (ended_s - began_s)


def story(number: int) -> list[Message]:
    """A prompt that SmolLM2 answers at length."""
    return [
        Message(role="user", content=f"Write a very long story about {number + 2} cats and a lighthouse.")
    ]


def conversation() -> list[Message]:
    """About 1,450 tokens of question and answer, ending in a question."""
    messages: list[Message] = []
    while sum(len(message.content) for message in messages) < CONVERSATION_CHARS:
        question = f"Part {len(messages)}: {PARAGRAPH * 2}What comes next?"
        messages.append(Message(role="user", content=question))
        messages.append(Message(role="assistant", content=f"Next comes {PARAGRAPH}"))
    return [*messages, Message(role="user", content="Name the river's end.")]


async def measure_throughput(engine: TextEngine, *, rounds: int = 3) -> Throughput:
    """One session alone, then `SESSIONS` together, `rounds` times."""
    await run(engine, "warm-up", story(0), 8)
    alone, together, fairness = [], [], []
    for _ in range(rounds):
        alone.append((await run(engine, "alone", story(0), DECODE_TOKENS)).rate)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(run(engine, f"s{number}", story(number), DECODE_TOKENS))
                for number in range(SESSIONS)
            ]
        traces = [task.result() for task in tasks]
        together.append(rate_while_all_decode(traces))
        rates = [trace.rate for trace in traces]
        fairness.append(min(rates) / max(rates))
    ratios = [many / one for many, one in zip(together, alone, strict=True)]
    return Throughput(
        alone=statistics.median(alone),
        together=statistics.median(together),
        sessions=SESSIONS,
        ratio=statistics.median(ratios),
        slowest_over_fastest=min(fairness),
    )


async def measure_second_turn(engine: TextEngine, *, rounds: int = 3) -> SecondTurn:
    """The same second turn with and without what the first left in memory."""
    first = conversation()
    kept, cold = [], []
    for number in range(rounds):
        trace = await _first_turn(engine, f"kept{number}", first)
        second = [
            *first,
            Message(role="assistant", content=trace.text),
            Message(role="user", content="And where does it begin?"),
        ]
        kept.append(await run(engine, f"kept{number}", second, 4))
        cold.append(await run(engine, f"cold{number}", second, 4))
    finished = kept[-1].finished
    cold_s = statistics.median(trace.first_s for trace in cold)
    kept_s = statistics.median(trace.first_s for trace in kept)
    return SecondTurn(
        prompt_tokens=finished.prompt_tokens if finished else 0,
        cached_tokens=finished.cached_tokens if finished else 0,
        cold_s=cold_s,
        kept_s=kept_s,
        ratio=cold_s / kept_s,
    )


async def measure_stall(engine: TextEngine) -> Stall:
    """A 1,450-token prompt arrives when each of four sessions has decoded eight tokens."""
    decoding = [asyncio.Event() for _ in range(4)]
    traces = [Trace(started_s=time.perf_counter()) for _ in decoding]

    async def stream(number: int) -> None:
        trace = traces[number]
        async for item in engine.generate(f"d{number}", story(number), Sampling(max_tokens=80)):
            if isinstance(item, Piece):
                trace.at_s.append(time.perf_counter())
                if item.tokens >= 8:
                    decoding[number].set()

    async with asyncio.TaskGroup() as group:
        for number in range(len(decoding)):
            group.create_task(stream(number))
        await asyncio.gather(*(event.wait() for event in decoding))
        arrived_s = time.perf_counter()
        newcomer = await run(engine, "newcomer", conversation(), 5)
    gaps = [gap for trace in traces for gap in trace.gaps_since(arrived_s)]
    return Stall(
        prompt_tokens=newcomer.finished.prompt_tokens if newcomer.finished else 0,
        worst_gap_s=max(gaps),
        median_gap_s=statistics.median(gaps),
        newcomer_first_token_s=newcomer.first_s,
    )


async def _first_turn(engine: TextEngine, session: str, messages: Sequence[Message]) -> Trace:
    """Like `run`, but what is in memory stays."""
    trace = Trace(started_s=time.perf_counter())
    async for item in engine.generate(session, messages, Sampling(max_tokens=12)):
        if isinstance(item, Piece):
            trace.text += item.text
    return trace


async def main(settings: EngineSettings) -> None:
    """Open, measure everything, print."""
    engine = await asyncio.to_thread(open_engine, settings)
    try:
        for result in (
            await measure_throughput(engine),
            await measure_second_turn(engine),
            await measure_stall(engine),
        ):
            values = ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in msgspec.structs.asdict(result).items()
            )
            print(f"{settings.dtype} {type(result).__name__}: {values}", flush=True)
    finally:
        await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "auto"])
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    asyncio.run(main(EngineSettings(dtype=chosen.dtype, device=chosen.device)))
