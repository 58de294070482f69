"""How the fleet starts processes: in a session of their own, and never to outlive it unasked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from helix_es.processes import leash
from helix_projections.fleet.provider import ProviderError


async def start(
    command: Sequence[str], output: Path, env: Mapping[str, str], *, append: bool
) -> asyncio.subprocess.Process:
    """Start `command` with `env` beside our own environment; all it says goes to `output`. Raises ProviderError."""
    try:
        with output.open("ab" if append else "wb") as out:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                preexec_fn=leash(),
            )
    except OSError as error:
        raise ProviderError(f"{command[0]} cannot be started: {error.strerror}") from error
