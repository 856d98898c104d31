"""Says how faster kernels (`trainer/kernels`) change what a step holds; pure arithmetic.

A plan does not count with them: which of them a card uses is known when each was proved on it, and
without one a step takes what is planned. Whoever knows them passes their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from trainer.config import PrecisionChoice
from trainer.estimate.setup import BYTES, TrainingSetup

UNPACKED = "unpacked"
"""Stands among the names of kernels where the values of the base's 4-bit layers are kept."""
CHANGES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "attention": {"masks": False},
        "rms_norm": {"fused_norms": True},
        "swiglu": {"gated_kept": 2},  # both inputs, of which the product is made again
        UNPACKED: {"unpacked": True},
    }
)
"""Of the loop's settings, by the name of a kernel."""


def with_kernels(work: TrainingSetup, names: Collection[str]) -> TrainingSetup:
    """Return the setup of a step that is computed with the kernels of these names.

    What is not known of a kernel changes nothing.
    """
    changes: dict[str, Any] = {}
    for name in names:
        changes |= CHANGES.get(name, {})
    if "attention" in names and work.precision is not PrecisionChoice.BF16:
        changes["repeated_keys"] = True  # as older cards need it, which have float16 only
    if "linear_cross_entropy" in names:  # logits in the type of the head, in one buffer
        changes["head_bytes"] = float(BYTES[work.precision])
    if not changes and "lora_dropout" not in names:
        return work
    dropout = work.dropout and "lora_dropout" not in names  # masks and dropped copies are not kept
    return replace(work, dropout=dropout, loop=replace(work.loop, **changes))
