"""Which quantisation is served on which device: without torch, so that a runner refuses before it joins."""

from __future__ import annotations

# On a CPU bitsandbytes computes int8 in float16 whatever the dtype, and a row depends on who shares its step.
_SERVED = {"cpu": ("nf4",), "cuda": ("nf4", "int8")}
INT8_CAPABILITY = (7, 5)  # Turing: older ones have no int8 products


def refusal(quantisation: str | None, device: str) -> str | None:
    """Return why weights cannot be held so on `device` (`cpu`, `cuda:0`) and what is allowed; None if they can."""
    kind = device.partition(":")[0]
    served = _SERVED.get(kind, ())
    if quantisation is None or quantisation in served:
        return None
    return f"{quantisation!r} is not served on {kind}; allowed there is {' or '.join(served)}, or nothing"
