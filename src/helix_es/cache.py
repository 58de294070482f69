"""Where files that can be made again are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for converted models: HELIX_CACHE_DIR, else ~/.cache/helix."""
    return Path(os.environ.get("HELIX_CACHE_DIR") or Path.home() / ".cache" / "helix")


SMOLLM2 = "smollm2-135m-instruct"


def model_folders() -> dict[str, Path]:
    """Return the folder of each built-in source; it is there once a runner has converted the model."""
    return {"builtin:smollm2": cache_dir() / SMOLLM2}
