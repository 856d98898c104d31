"""Measures the memory of real training steps on the CPU, by what torch's allocator reports.

The allocator tells its profiler of every block that it takes and gives back, also of those inside
of operations and of libraries in C++; nothing of the count of `trainer.step_memory` is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from support.rig import Rig


def static_bytes(made: Rig) -> int:
    """Return the bytes of all that a model holds before its first step."""
    seen: dict[int, int] = {}
    for tensor in tensors_of(made.context.model):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """Yield parameters, buffers and the scales that bitsandbytes keeps beside them."""
    for module in model.modules():
        own = (*module._parameters.values(), *module._buffers.values())
        yield from (one for one in own if one is not None)
        beside = (getattr(module, "quant_state", None), getattr(module, "state", None))
        for state in (*beside, getattr(module, "weight", None)):
            for one in vars(state).values() if hasattr(state, "__dict__") else ():
                if isinstance(one, torch.Tensor):
                    yield one
                elif hasattr(one, "absmax"):
                    yield from (x for x in vars(one).values() if isinstance(x, torch.Tensor))


def peak_bytes(made: Rig, *, steps: int = 2) -> int:
    """Train so many steps; return the most bytes that were there at once, the model's included."""
    static = static_bytes(made)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made.train(until=steps)
    return static + most_at_once(seen)


def most_at_once(seen: Any) -> int:
    """Return the most bytes that were there at once beside those from before, by a profile."""
    live = most = 0
    changes = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    for _, change in sorted(changes, key=lambda one: one[0]):
        live += change
        most = max(most, live)
    return most
