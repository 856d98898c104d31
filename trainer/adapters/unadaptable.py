"""Names the linear layers of a base that PEFT 0.21.2 does not adapt, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from trainer.adapters.experts import claimed_by_peft

READ_PAST: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "mamba": frozenset({"dt_proj", "out_proj"}),
        "falcon_mamba": frozenset({"dt_proj", "out_proj"}),
        "jamba": frozenset({"dt_proj"}),
        "mamba2": frozenset({"out_proj"}),
        "falcon_h1": frozenset({"out_proj"}),
        "nemotron_h": frozenset({"out_proj"}),
    }
)
"""Layers of state spaces whose weights are read without the layer being called, by architecture.

An adapter on one learns nothing; PEFT refuses `out_proj` of most of these.
"""


def unadaptable(model: Any, names: Sequence[str], *, mixture: bool) -> dict[str, str]:
    """Return those of the last name parts that PEFT would refuse or misread, with the reason.

    `mixture` tells whether the model has experts.
    """
    kind = type(model).__name__
    found = {}
    past = READ_PAST.get(str(getattr(model.config, "model_type", "")), frozenset())
    if past:
        reason = f"a {kind} reads its weight past an adapter"
        found = {name: reason for name in names if name in past}
    if mixture:
        reason = f"PEFT takes it for the name of experts in a {kind}"
        found |= dict.fromkeys(sorted(claimed_by_peft(model, list(names))), reason)
    return found
