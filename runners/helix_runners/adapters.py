"""Adapters on this machine: their files from the store, once, into the cache."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from helix_es.cache import cache_dir
from helix_es.core.errors import EngineError, Rejected
from helix_es.core.subjects import TOKEN
from helix_es.jetstream.files import Files

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MOST_KEPT = 64  # folders; the least recently used go first


class AdapterFolders:
    """Gives the folder of an adapter, as peft writes it."""

    def __init__(self, files: Files, folder: Path | None = None) -> None:
        self._files = files
        self._root = folder or cache_dir() / "adapters"
        self._locks: dict[str, asyncio.Lock] = {}

    async def folder(self, files: list[str]) -> Path:
        """Return the folder with the files of an adapter: weights, configuration, and whatever follows.

        Raises EngineError (`adapter_unavailable`) if they are gone, Unavailable if they cannot be had now.
        """
        if len(files) < 2 or not all(TOKEN.match(each) for each in files):
            raise EngineError(
                "the session's adapter has no weights and configuration", code="adapter_unavailable"
            )
        weights, config = files[:2]
        folder = self._root / weights
        async with self._locks.setdefault(weights, asyncio.Lock()):
            if not (folder / CONFIG).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    await self._files.fetch(weights, folder / WEIGHTS)
                    await self._files.fetch(
                        config, folder / CONFIG
                    )  # last: where it is, the adapter is whole
                except Rejected as error:
                    raise EngineError(
                        f"the adapter's files are gone: {error}; train it again", code="adapter_unavailable"
                    ) from error
                await asyncio.to_thread(self._forget_oldest)
            (folder / CONFIG).touch()
        return folder

    def _forget_oldest(self) -> None:
        there = [each for each in self._root.iterdir() if (each / CONFIG).is_file()]
        there.sort(key=lambda each: (each / CONFIG).stat().st_mtime)
        for each in there[:-MOST_KEPT]:
            shutil.rmtree(each, ignore_errors=True)  # another runner may be quicker
