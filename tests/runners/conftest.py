"""The floor that a runner stands on."""

from __future__ import annotations

import itertools

import pytest

from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from tests.runners.floor import Floor


@pytest.fixture
def floor(connection: Connection) -> Floor:
    return Floor(connection)


@pytest.fixture
def files(connection: Connection) -> Files:
    """The real store."""
    numbers = itertools.count(1)
    return Files(connection, new_id=lambda: f"f{next(numbers)}")
