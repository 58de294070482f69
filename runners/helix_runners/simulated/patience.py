"""Waiting for a log that is away: thousands of turns do, and one line says it for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from helix_es.core.errors import LogFull, Unavailable

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5  # as a real runner's
SAY_EVERY_S = 5.0

Result = TypeVar("Result")


class Patience:
    """Shared by all GPUs of the process."""

    def __init__(self) -> None:
        self._said_s = float("-inf")
        self._unsaid = 0

    async def __call__(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `attempt` gives, trying again while the log cannot be reached or is full."""
        while True:
            try:
                return await attempt()
            except (Unavailable, LogFull) as error:
                self._say(error)
                await asyncio.sleep(PATIENCE_S)

    def _say(self, error: Unavailable | LogFull) -> None:
        now_s = asyncio.get_running_loop().time()
        self._unsaid += 1
        if now_s - self._said_s >= SAY_EVERY_S:
            log.warning("log_not_reached", code=error.code, error=str(error), count=self._unsaid)
            self._said_s, self._unsaid = now_s, 0
