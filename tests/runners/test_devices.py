"""The names of GPUs."""

from __future__ import annotations

import pytest

from helix_es.core.hardware import KNOWN_GPUS
from helix_runners.devices import KINDS, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("NVIDIA L4", "l4-24"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24"),
        ("Tesla T4", "t4-16"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "a100-sxm4-80gb-mig-1g-10gb"),
        ("NVIDIA H100 NVL", "h100-nvl"),
    ],
)
def test_a_gpu_has_the_name_that_coefficients_are_written_for(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_what_is_recognised_is_what_is_known() -> None:
    assert {kind for _, kind in KINDS} == set(KNOWN_GPUS)
