"""Whose fault a failure is: the request's, which fails everywhere, or this GPU's, where another may do it."""

from __future__ import annotations

import gc
import sys

from helix_es.core.errors import EngineError, HelixError
from helix_es.core.events import Failure

OUT_OF_MEMORY = "out_of_memory"
BROKEN = "engine_broken"
UNEXPECTED = "runner_error"

# code of an engine's error -> code of a turn that goes back to the door
_OURS = {
    OUT_OF_MEMORY: OUT_OF_MEMORY,
    "engine_stopped": BROKEN,
    "session_busy": EngineError.code,  # its turn before this one has not ended here
    EngineError.code: EngineError.code,  # of a step that failed in a way that no request should cause
}
# How torch says it where it has no type for it: the allocator of a CPU, CUDA's own calls, cuBLAS.
_SAYINGS = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def fault(error: HelixError) -> tuple[Failure, bool]:
    """Return what to say of `error`, and whether another GPU, or another attempt, may do what it prevented."""
    code = _OURS.get(error.code)
    return Failure(code=code or error.code, message=str(error)), code is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is no memory left, of the GPU or of the machine."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # by its name, since whoever judges an error need not have torch
    return type(error).__name__ == "OutOfMemoryError" or any(said in str(error) for said in _SAYINGS)


def collect() -> None:
    """Give memory back that nobody holds any more. An error that is being handled still holds its frames."""
    gc.collect()
    torch = sys.modules.get("torch")  # whoever has not imported it holds nothing of a GPU
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
