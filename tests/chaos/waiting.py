"""Wait for something outside of this process, which can only be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(good: Callable[[], Awaitable[bool]], seconds: float, every_s: float = 0.25) -> bool:
    """Ask until `good`; return False if it takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                if await good():
                    return True
                await asyncio.sleep(every_s)
    except TimeoutError:
        return False
