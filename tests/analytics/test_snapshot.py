"""Wishes for a new snapshot: said, waited for, and given up."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from helix_es.analytics import snapshot as module
from helix_es.analytics.schema import SNAPSHOT
from helix_es.analytics.snapshot import WANTED, Wishes

pytestmark = pytest.mark.anyio


def put(folder: Path, age_s: float) -> None:
    path = folder / "next"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age_s,) * 2)
    path.replace(folder / SNAPSHOT)


async def test_a_fresh_snapshot_is_used_at_once_and_the_wish_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 3_600.0)
    put(tmp_path, age_s=1)
    async with asyncio.timeout(10):
        await Wishes(tmp_path, fresh_s=60).wish()
    assert time.time() - (tmp_path / WANTED).stat().st_mtime < 10


async def test_a_newer_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 3_600.0)
    put(tmp_path, age_s=100)
    wishes = Wishes(tmp_path, fresh_s=2)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        wished = group.create_task(wishes.wish())
        while not (tmp_path / WANTED).exists():  # noqa: ASYNC110 — a file says nothing
            await asyncio.sleep(0)
        assert not wished.done()
        put(tmp_path, age_s=0)


async def test_who_waited_in_vain_does_not_wait_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    put(tmp_path, age_s=100)
    wishes = Wishes(tmp_path, fresh_s=2)
    await wishes.wish()
    monkeypatch.setattr(module, "PATIENCE_S", 3_600.0)
    async with asyncio.timeout(10):
        await wishes.wish()


async def test_a_folder_that_is_not_there_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    await Wishes(tmp_path / "none", fresh_s=2).wish()
    assert not (tmp_path / "none").exists()
