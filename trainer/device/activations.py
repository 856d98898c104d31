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

RANDOM_SETTINGS = ("drop", "jitter", "noise")
"""What names of settings contain that make a pass draw random numbers, unless they are zero."""
LIBRARIES = frozenset({"torch", "transformers", "peft", "bitsandbytes", "trainer"})
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


def may_draw(model: Any) -> bool:
    """Tell whether a pass in training mode may draw random numbers, as dropout does.

    Looked through are the settings of all modules. Of classes that are neither torch's nor those of
    the libraries below it is not ruled out.
    """
    looked: set[int] = set()
    for module in model.modules():
        kind = type(module)
        dropping = "drop" in kind.__name__.lower() and getattr(module, "p", 0) != 0
        if dropping or kind.__module__.partition(".")[0] not in LIBRARIES:
            return True
        for place in (module, getattr(module, "config", None)):
            if place is None or id(place) in looked:
                continue
            looked.add(id(place))
            if any(_is_random(name, value) for name, value in vars(place).items()):
                return True
    return False


def _is_random(name: str, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value != 0 and any(word in name.lower() for word in RANDOM_SETTINGS)


def set_checkpointing(model: Any, *, on: bool) -> None:
    """Switch gradient checkpointing on or off, if it is not so already.

    The states of the random generators are kept for each layer only where a pass may draw numbers.
    """
    if is_checkpointing(model) == on:
        return
    base = base_of(model)
    with warnings.catch_warnings():  # the names of transformers 5, which 6 will drop
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        if on:
            base.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={
                    "use_reentrant": False,
                    "preserve_rng_state": may_draw(base),
                }
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
    own = {
        one.untyped_storage().data_ptr()
        for one in (*model.parameters(), *model.buffers())
        if not hasattr(one, "to_local")  # of a sharded base, whose packed bytes are never saved
    }

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
