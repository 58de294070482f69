"""Simulated conversation: the first token after a while, then the others at the rate that the GPU's crowd allows."""

from __future__ import annotations

import asyncio

from helix_es.core.events import Usage
from helix_runners.output import Speaker
from helix_runners.simulated.doing import Doing
from helix_runners.simulated.service import jittered
from helix_runners.simulated.words import token_count, words
from helix_runners.work import Outcome


async def speak(doing: Doing, speaker: Speaker) -> Outcome:
    """Return the answer, after it was said piece by piece."""
    told, event, attempt = doing.told, doing.event, doing.attempt
    service, now_s = doing.tools.service, asyncio.get_running_loop().time
    tokens = token_count(event.session, event.turn, told.params)
    first_s = service.first_token_s(told.prompt_tokens - told.cached_tokens, doing.crowd)
    await attempt.pause(jittered(first_s, doing.tools.random) - (now_s() - doing.begun_s))
    first_ms = None if attempt.stopped else doing.elapsed_ms()
    said, done, at_s = 0, 1.0, now_s()
    error = None
    while not attempt.stopped and error is None and said < tokens:
        upto = min(tokens, int(done))
        if upto > said:
            await speaker.say(words(event.session, event.turn, said, upto))
            said = upto
        error = doing.failure(said / tokens)
        if error is None and said < tokens:
            rate = service.decode_rate(doing.crowd)
            await attempt.pause(min(max(doing.tools.piece_s, 1.0 / rate), (tokens - done) / rate))
            done, at_s = min(float(tokens), done + (now_s() - at_s) * rate), now_s()
    asked = said >= tokens and "max_tokens" in told.params
    return Outcome(
        output=words(event.session, event.turn, 0, said),
        error=error,
        cancelled=attempt.stopped and said < tokens,
        usage=Usage(
            prompt_tokens=told.prompt_tokens,
            cached_tokens=told.cached_tokens,
            completion_tokens=said,
        ),
        finish_reason="length" if asked else "stop",
        first_token_ms=first_ms,
    )
