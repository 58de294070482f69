"""The small pipeline as a folder, made once; and image turns on it, with a real object store."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from helix_es.core.catalogue import Model
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_runners.image.work import ImageWork
from tests.runners.image.engines import Unet
from tests.runners.image.pipelines import tiny
from tests.runners.image.turns import PICTURE, TINY, Shop


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def files(connection: Connection) -> Files:
    numbers = itertools.count(1)
    return Files(connection, new_id=lambda: f"f{next(numbers)}")


@pytest.fixture
async def shop(files: Files, tiny_folder: Path) -> AsyncIterator[Shop]:
    made = ImageWork(files, device="cpu", threads=1)
    await made.load(TINY, Model(name="test/tiny", type="image", source=str(tiny_folder), image=PICTURE))
    assert made._engine is not None
    yield Shop(made, files, Unet(made._engine._studio._pipeline))
    await made.close()
