"""Why a fine-tune ends without an adapter: a stable code, and what to do."""

from __future__ import annotations

import torch

from helix_es.core.errors import EngineError, HelixError
from helix_es.core.events import Failure

_OUT_OF_MEMORY = "can't allocate memory"  # how torch says it of a CPU, in a plain RuntimeError


class TrainingFailed(Exception):
    """The fine-tune cannot go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message)


def failed(error: Exception) -> TrainingFailed:
    """Return what an error in a computation means for the one who asked for it."""
    if isinstance(error, TrainingFailed):
        return error
    if isinstance(error, HelixError):
        return TrainingFailed(error.code, str(error))
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _OUT_OF_MEMORY in str(error):
        return TrainingFailed(
            "out_of_memory",
            "the step does not fit the memory: lower batch_size and raise gradient_accumulation as much, lower "
            "sequence_tokens, or set load_in_4bit",
        )
    return TrainingFailed(
        EngineError.code, f"the step could not be computed: {type(error).__name__}: {error}"
    )


def fatal(error: Exception) -> bool:
    """Whether the device computes nothing more in this process: CUDA keeps such an error."""
    return isinstance(error, torch.AcceleratorError)
