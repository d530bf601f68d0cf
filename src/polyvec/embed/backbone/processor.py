"""What decides which instructions torch's libraries compute with."""

import contextlib
import itertools
import os
import platform
from pathlib import Path
from typing import Any

import torch

FACTS = ("vendor_id", "model name", "flags")
# What selects kernels, beside the processor.
KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)


def kernels() -> list[Any]:
    """All of it: equal in two processes if both compute the same bits from the same weights."""
    chosen = [os.environ.get(name) for name in KERNELS]
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), _facts(), chosen]


def is_intel() -> bool:
    """Whether Intel made the processor: MKL uses its best kernels on no others."""
    return any("GenuineIntel" in told for told in _facts() or [platform.processor()])


def _facts() -> list[str]:
    """The maker, name and instructions of the processor; [] where the system does not tell."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as file:
        first = itertools.takewhile(str.strip, file)
        return [line for line in first if line.startswith(FACTS)]
    return []
