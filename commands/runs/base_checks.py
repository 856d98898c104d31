"""Judges a base by its `config.json` before anything is rented: would the trainer refuse it?

It is the trainer's own judgement (`trainer/base_config.py`, `trainer/adapters/quantised_share.py`),
on sizes by formula or counted here instead of on the model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from commands.runs.base_description import described
from commands.runs.base_shape import base_shape
from commands.runs.config import LoadedConfig
from commands.ui.errors import UsageError
from trainer.adapters.expert_methods import expert_problem
from trainer.adapters.quantised_share import QuantisedShare
from trainer.base_config import base_problems, expert_count, stored_quantisation
from trainer.device.model_shape import Shape
from trainer.device.shapes import UnknownShapeError
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import quantised_parameters
from trainer.method_table import MethodTable, Quant


def require_trainable(loaded: LoadedConfig) -> None:
    """Raise UsageError if the trainer would refuse the base, as far as its config.json is here."""
    config = described(loaded)
    if config is None:
        return
    faults = base_faults(config, loaded.config.method, name=loaded.config.model.id)
    if faults:
        raise UsageError("the base cannot be trained so; nothing was rented", problems=faults)


def base_faults(config: Mapping[str, Any], method: MethodTable, *, name: str) -> list[str]:
    """Return why the trainer would refuse a base with this config; empty if nothing is known."""
    problems = base_problems(config, method, name=name)
    plain = method.storage is Quant.NONE and expert_count(config) <= 1
    if problems or plain:  # its sizes, which may take seconds to count, decide nothing
        return problems
    try:
        shape = base_shape(config)
    except UnknownShapeError:
        return []
    found = [_experts_problem(shape, method)]
    if stored_quantisation(config) is None:
        share = share_of(shape, method)
        found.append(share.problem(partly_quantised=method.partly_quantised))
    return [problem for problem in found if problem is not None]


def _experts_problem(shape: Shape, method: MethodTable) -> str | None:
    """Return why the method cannot adapt the experts of a base of this shape; None if it can."""
    experts = {one.name for block in shape.text_blocks for one in block.experts}
    layers = {one.name for block in shape.text_blocks for one in block.linears}
    return expert_problem(method, experts=experts, layers=layers)


def share_of(shape: Shape, method: MethodTable) -> QuantisedShare:
    """Return how much of a base of this shape the method quantises."""
    work = TrainingSetup(tokens=1, quant=method.storage)
    reading = replace(shape, blocks=shape.text_blocks)
    return QuantisedShare(
        storage=str(method.storage),
        weights=shape.parameters,
        quantised=quantised_parameters(shape, work),
        matrices=sum(block.count * block.matrices for block in reading.blocks),
        quantised_matrices=quantised_parameters(reading, work),
    )
