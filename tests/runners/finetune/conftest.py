"""What every test of fine-tunes needs: a place for files, and a tiny model."""

from __future__ import annotations

import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from helix_es.core.catalogue import Model
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_runners.finetune.work import FinetuneWork
from tests.runners.finetune.parts import ready, tiny


@pytest.fixture(scope="session", autouse=True)
def settled() -> Iterator[None]:
    """What is imported stays: every fine-tune collects garbage, which would look through all of it each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def files(connection: Connection) -> Files:
    numbers = itertools.count(1)
    return Files(connection, new_id=lambda: f"f{next(numbers)}")


@pytest.fixture
async def work(files: Files, model: Model) -> AsyncIterator[FinetuneWork]:
    made = await ready(files, model)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Steps this small only wait for each other on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            # peft asks transformers 5.23 for a property by its old name
            item.add_marker(pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"))
