"""What GPUs this machine has and how they are: NVML where there is a driver, the processor where there is none."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import psutil

try:
    import pynvml
except ImportError:  # a control-plane image has no reason to carry it
    pynvml = None

# marketing name as NVML gives it -> the kind that coefficients are written for
KINDS = (
    (r"A100.*80GB", "a100-80"),
    (r"A100", "a100-40"),
    (r"H100", "h100-80"),
    (r"\bL4\b", "l4-24"),
    (r"RTX 4090", "rtx4090-24"),
    (r"\bT4\b", "t4-16"),
)
OTHER = re.compile(
    r"\bMIG\b|\bNVL\b|A100.*64GB"
)  # a part of a GPU, or more or less memory than the kind says


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something a model can run on."""

    torch_name: str
    """As torch calls it: `cpu`, `cuda:0`."""
    kind: str
    memory_total_bytes: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One reading; what cannot be read is None."""

    memory_total_bytes: int
    memory_used_bytes: int
    utilisation: float
    temperature_c: int | None = None
    power_w: int | None = None


def kind_of(name: str) -> str:
    """Return the GPU kind for NVML's name of it, as in `NVIDIA A100-SXM4-80GB` -> `a100-80`.

    What is not as large as a known kind keeps its own name, so that no coefficient is taken for it by mistake.
    """
    if not OTHER.search(name):
        for pattern, kind in KINDS:
            if re.search(pattern, name):
                return kind
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-") or "gpu"


def devices() -> list[Device]:
    """Return the GPUs, or the processor as the one device of kind `cpu`."""
    return _gpus() or [cpu()]


def cpu() -> Device:
    """Return the processor with the machine's memory."""
    return Device(torch_name="cpu", kind="cpu", memory_total_bytes=psutil.virtual_memory().total)


def device(torch_name: str) -> Device | None:
    """Return the device that torch calls `torch_name`, or None if it is not here."""
    if torch_name == "cpu":
        return cpu()
    return next((each for each in _gpus() if each.torch_name == torch_name), None)


def _gpus() -> list[Device]:
    if pynvml is None:
        return []
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    found = []
    for index in range(count):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        found.append(Device(torch_name=f"cuda:{index}", kind=kind_of(str(name)), memory_total_bytes=total))
    return found


def facts(of: Device) -> Facts:
    """Measure `of` now; each reading is guarded by itself, since drivers refuse single ones."""
    if not of.torch_name.startswith("cuda:") or pynvml is None:
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        return Facts(
            memory_total_bytes=memory.total,
            memory_used_bytes=used,
            utilisation=psutil.cpu_percent(None) / 100,
        )
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(of.torch_name.split(":")[1]))
    memory = _read(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _read(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _read(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Facts(
        memory_total_bytes=of.memory_total_bytes,
        memory_used_bytes=int(memory.used) if memory else 0,
        utilisation=rates.gpu / 100 if rates else 0.0,
        temperature_c=_read(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=power_mw // 1000 if power_mw else None,
    )


def _read(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except pynvml.NVMLError:
        return None
