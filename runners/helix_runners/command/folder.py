"""The private folder of a task: what the program is given as files, and where it leaves its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from helix_es.jetstream.files import Files
from helix_runners.adapters import AdapterFolders
from helix_runners.work import Job

log = structlog.get_logger(__name__)

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}

SECRETS = ("HELIX_API_KEY",)
SECRET_PREFIXES = ("HELIX_NATS_", "OTEL_EXPORTER_OTLP_HEADERS")
OURS = (
    "HELIX_SESSION",
    "HELIX_TURN",
    "HELIX_ATTEMPT",
    "HELIX_OUTPUT_DIR",
    "HELIX_MODEL",
    "HELIX_PARAMS",
    "HELIX_SEED",
    "HELIX_DATASET",
    "HELIX_INPUT_IMAGE",
    "HELIX_ADAPTER_DIR",
)


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Files that a task brings."""

    dataset: Path | None = None
    """What a fine-tune learns from."""
    image: Path | None = None
    """The picture that a further turn of an image session changes."""
    adapter: Path | None = None
    """A folder as peft writes it, for a session that wants an adapter."""

    @property
    def any(self) -> bool:
        return bool(self.dataset or self.image or self.adapter)


class TaskFolder:
    """A folder that only this user may read."""

    def __init__(self, root: Path) -> None:
        self._path = Path(tempfile.mkdtemp(dir=root))
        self.output = self._path / "output"
        self.output.mkdir()

    async def bring(self, job: Job, files: Files) -> Inputs:
        """Fetch what the task brings. Raises Rejected or EngineError if it is gone, Unavailable if it cannot be had."""
        state = job.state
        dataset = image = adapter = None
        if state.dataset is not None:
            await files.info(state.dataset, state.owner)
            dataset = self._path / "dataset.jsonl"
            await files.fetch(state.dataset, dataset)
        picture = state.picture_before(job.turn.turn) if state.type == "image" else None
        if picture is not None:
            info = await files.info(picture, state.owner)
            image = self._path / f"picture{SUFFIXES.get(info.media, '')}"
            await files.fetch(picture, image)
        if state.adapter_files:
            adapter = await AdapterFolders(files, self._path / "adapter").folder(state.adapter_files)
        return Inputs(dataset=dataset, image=image, adapter=adapter)

    def remove(self) -> None:
        """Remove it with all that the program left."""
        shutil.rmtree(self._path, onerror=_note)

    def empty(self) -> None:
        """Remove what is in its output."""
        shutil.rmtree(self.output, onerror=_note)
        self.output.mkdir(exist_ok=True)


def _note(_function: object, path: str, found: tuple[object, BaseException, object]) -> None:
    # A program in a container may have left files of another user; they are in the way of nothing.
    log.warning("not_removed", path=path, error=str(found[1]))


def seed_of(job: Job) -> int:
    """Return the turn's seed. Without one it is derived, so that a second attempt makes the same."""
    given = job.params.get("seed")
    return given if isinstance(given, int) else zlib.crc32(f"{job.session}:{job.turn.turn}".encode())


def handed_down(environment: Mapping[str, str], slug: str) -> dict[str, str]:
    """Return what a program gets of the runner's environment: all but secrets of ours and what another set for us."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in SECRETS and name not in OURS and not name.startswith(SECRET_PREFIXES)
    }
    kept.setdefault("PYTHONUNBUFFERED", "1")  # else Python keeps an answer back until 8 KiB of it are there
    return {**kept, "HELIX_MODEL": slug}


def task_environment(job: Job, output: Path, inputs: Inputs) -> dict[str, str]:
    """Return what a program of one task finds in its environment beside that."""
    found = {
        "HELIX_SESSION": job.session,
        "HELIX_TURN": str(job.turn.turn),
        "HELIX_ATTEMPT": str(job.turn.attempt),
        "HELIX_OUTPUT_DIR": str(output),
        "HELIX_PARAMS": msgspec.json.encode(job.params).decode(),
        "HELIX_SEED": str(seed_of(job)),
    }
    for name, path in (
        ("HELIX_DATASET", inputs.dataset),
        ("HELIX_INPUT_IMAGE", inputs.image),
        ("HELIX_ADAPTER_DIR", inputs.adapter),
    ):
        if path is not None:
            found[name] = str(path)
    return found


def new_root() -> Path:
    """Make the folder of all tasks of a runner; removed by its guard."""
    return Path(tempfile.mkdtemp(prefix=f"helix-command-{os.getpid()}-"))
