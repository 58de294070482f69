"""One small database and one process that answers over it, for every test here that spoils neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helix_es.analytics.keeper import Keeper
from helix_es.analytics.questions import Limits
from tests.analytics.small import make


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("analytics") / "snapshot.duckdb")


@pytest.fixture(scope="session")
def keeper(snapshot: Path) -> Iterator[Keeper]:
    made = Keeper(snapshot, Limits(memory_bytes=256 << 20))
    yield made
    made.close()
