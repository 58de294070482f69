"""What a pool's keeper asks of whoever can start and end GPUs: a machine, a command, a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from helix_es.core.errors import HelixError

Standing = Literal["serving", "draining", "drained"]
"""What the log says of a GPU: it stays; it leaves and still holds somebody; it leaves and holds nobody."""

Gpus = Mapping[str, Standing]
"""The GPUs of one pool that have joined, by name."""


class ProviderError(HelixError):
    """The pool could not be made as large as it should be; it is tried again."""

    code = "provider_failed"

    def __init__(self, message: str, *, after_s: float = 0.0) -> None:
        """`after_s`: not to be tried again before that many seconds."""
        super().__init__(message)
        self.after_s = after_s


class Provider(Protocol):
    """Makes the GPUs of one pool. Every call says the whole state that is wanted; repeating one changes nothing."""

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        """Work towards `size` GPUs, and return after how many seconds to be called again even if nothing changes.

        `previous` is the size that was made last. No GPU that holds somebody is ended. Raises ProviderError.
        """

    async def present(self) -> int | None:
        """Return how many GPUs it has started, None if it cannot know. Raises ProviderError."""

    async def close(self) -> None:
        """End what lives only as long as this process."""
