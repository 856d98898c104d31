"""Decides what becomes of activations until the backward pass: kept, computed again, or moved.

None of it changes a number: what is computed again, or copied to the host and back, has the same
bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

MOVED_BYTES_MIN = 1 << 16  # smaller tensors are many, and free little


def base_of(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_checkpoint(model: Any) -> bool:
    """Tell whether the architecture can compute activations again in the backward pass."""
    return bool(base_of(model).supports_gradient_checkpointing)


def is_checkpointing(model: Any) -> bool:
    """Tell whether any layer computes its activations again in the backward pass."""
    return any(getattr(one, "gradient_checkpointing", False) for one in model.modules())


def set_checkpointing(model: Any, *, on: bool) -> None:
    """Switch gradient checkpointing on or off, if it is not so already."""
    if is_checkpointing(model) == on:
        return
    base = base_of(model)
    with warnings.catch_warnings():  # the names of transformers 5, which 6 will drop
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        if on:
            base.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        else:
            base.gradient_checkpointing_disable()


@contextmanager
def offloaded(model: Any, *, pinned: bool = True) -> Iterator[None]:
    """Move to the host what the forward pass inside saves for the backward pass, but no weights.

    With gradient checkpointing that is the input of every layer. Weights that an operation saves
    stay where they are: they are on the device anyway. `pinned` memory is copied faster; it needs
    CUDA.
    """
    moving = save_on_cpu(pin_memory=pinned)
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}

    def pack(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.nbytes() < MOVED_BYTES_MIN or storage.data_ptr() in own:
            return tensor
        return moving.pack_hook(tensor)

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        found: torch.Tensor = moving.unpack_hook(packed)
        return found

    with saved_tensors_hooks(pack, unpack):
        yield
