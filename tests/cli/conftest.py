"""The fake API, for every test of commands."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.cli.fake import FakeApi


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    for name in ("HELIX_URL", "HELIX_API_KEY", "HELIX_NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    made = FakeApi()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join(10)
    made.server.server_close()
