"""Lets libraries treat fake tensors as they treat real ones."""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def like_real() -> Iterator[None]:
    """While inside, nothing is done otherwise because a tensor is fake.

    transformers leaves out a mask that masks nothing. A module changes types by new parameters,
    where it would swap fake ones in place, which is refused as long as a mode looks on. A copy of a
    fake tensor belongs to the same mode.
    """
    from transformers import masking_utils

    with ExitStack() as stack:
        for place, name, ours in (
            (masking_utils, "is_tracing", lambda *_: False),
            (torch.nn.Module, "_apply", _apply),
            (FakeTensorMode, "__deepcopy__", lambda mode, _: mode),
        ):
            if hasattr(place, name):
                stack.callback(setattr, place, name, getattr(place, name))
            else:
                stack.callback(delattr, place, name)
            setattr(place, name, ours)
        yield


def _apply(module: Any, function: Any, recurse: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
    """Do as `torch.nn.Module._apply`, with a new parameter for each that changes."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            applied = function(parameter)
        if applied is not parameter:
            module._parameters[name] = torch.nn.Parameter(applied, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module
