"""Why a fine-tune ends without an adapter: a stable code, and what to do."""

from __future__ import annotations

import torch

from helix_es.core.errors import EngineError, HelixError
from helix_es.core.events import Failure
from helix_runners.faults import OUT_OF_MEMORY, fault, is_out_of_memory


class TrainingFailed(Exception):
    """The fine-tune cannot go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message)

    @property
    def retry(self) -> bool:
        """Whether another GPU, or another attempt, may go on where this one could not."""
        return fault(EngineError(self.failure.message, code=self.failure.code))[1]


def failed(error: Exception) -> TrainingFailed:
    """Return what an error in a computation means for the one who asked for it."""
    if isinstance(error, TrainingFailed):
        return error
    if isinstance(error, HelixError):
        return TrainingFailed(error.code, str(error))
    if is_out_of_memory(error):
        return TrainingFailed(
            OUT_OF_MEMORY,
            "the step does not fit the memory: lower batch_size and raise gradient_accumulation as much, lower "
            "sequence_tokens, or set load_in_4bit",
        )
    return TrainingFailed(
        EngineError.code, f"the step could not be computed: {type(error).__name__}: {error}"
    )


def fatal(error: Exception) -> bool:
    """Whether the device computes nothing more in this process: CUDA keeps such an error."""
    return isinstance(error, torch.AcceleratorError)
