"""Every GPU that can be rented has its usable memory and its speed in the trainer's table."""

from __future__ import annotations

import pytest

from infra.catalog.gpus import GPUS as RENTED
from trainer.config import PrecisionChoice
from trainer.device.precision import BF16_SINCE
from trainer.estimate.gpus import GIB, GPUS


@pytest.mark.parametrize("name", sorted(RENTED))
def test_a_gpu_of_the_catalog_has_a_row_in_the_trainer(name: str) -> None:
    """Its usable memory is within a tenth below what is sold, its arithmetic follows its age."""
    sold, seen = RENTED[name], GPUS[name]

    assert 0.9 * sold.memory_gb <= seen.memory_bytes / GIB <= sold.memory_gb
    assert (seen.precision is PrecisionChoice.BF16) == (sold.compute_capability >= BF16_SINCE)
    assert seen.flops > 0
