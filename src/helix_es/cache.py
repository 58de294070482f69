"""Where files that can be made again are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for converted models: HELIX_CACHE_DIR, else ~/.cache/helix."""
    return Path(os.environ.get("HELIX_CACHE_DIR") or Path.home() / ".cache" / "helix")


# the digest of the package's file in the name: another file, or another way to convert it, is another folder
SMOLLM2 = "smollm2-135m-instruct-b179c9523d0e-v1"


def model_folders() -> dict[str, Path]:
    """Return the folder of each built-in source; it is there once a runner has converted the model."""
    return {"builtin:smollm2": cache_dir() / SMOLLM2}
