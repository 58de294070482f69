"""Whether facts still become tasks."""

from __future__ import annotations

import pytest

from helix_projections.routing import silent


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({"sources": [{"name": "LOG", "lag": 0, "active": 900_000_000}]}, False),
        ({"sources": [{"name": "LOG", "lag": 12, "active": 1_100_000_000}]}, False),
        ({"sources": [{"name": "LOG", "lag": 12, "active": 3_000_000_000}]}, True),
        ({"sources": [{"name": "LOG", "lag": 0, "active": -1}]}, True),
        ({}, False),
    ],
)
def test_a_source_that_is_not_heard_has_stopped(info: dict[str, object], found: bool) -> None:
    assert silent(info) == found
