"""The usable memory and the training speed of each GPU, by its name in the catalog of machines.

A test binds the names to the GPUs that can be rented (`infra/catalog/gpus.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer.config import PrecisionChoice

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class TrainingGpu:
    """A GPU as a training sees it; `flops` is what such a training reaches, not the data sheet."""

    name: str
    memory_bytes: float
    precision: PrecisionChoice
    flops: float


# Usable memory is what the driver leaves, as torch's messages name it; the H100 is the NVL with
# 94 GB, which Azure rents. Speeds: T4 and A10 between published runs of this kind, which differ by
# a factor of three; the others scaled from A10 by their data sheets.
GPUS: Mapping[str, TrainingGpu] = MappingProxyType(
    {
        name: TrainingGpu(name=name, memory_bytes=gib * GIB, precision=precision, flops=flops)
        for name, gib, precision, flops in (
            ("T4", 14.75, PrecisionChoice.FP16, 6e12),
            ("V100", 15.77, PrecisionChoice.FP16, 12e12),
            ("A10", 22.0, PrecisionChoice.BF16, 28e12),
            ("A100", 79.1, PrecisionChoice.BF16, 90e12),
            ("H100", 93.0, PrecisionChoice.BF16, 180e12),
        )
    }
)
