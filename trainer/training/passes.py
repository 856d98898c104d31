"""One forward and backward pass over some rows: the only place where gradients are made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from trainer.data.codec import Example
from trainer.device.activations import offloaded
from trainer.saving.state import TrainingState
from trainer.training.objective import Batch
from trainer.training.train_context import TrainContext


def backward_pass(
    context: TrainContext,
    state: TrainingState,
    examples: Sequence[Example],
    *,
    targets: int,
    seed: int,
) -> torch.Tensor:
    """Add the gradient of the loss of `examples`, over `targets`, and return that summed loss.

    `seed` decides about the dropout masks. Where there is a loss scale, the gradient is scaled.
    """
    device = context.accelerator.device
    collated = context.objective.collate(examples)  # while the device is at the pass before
    context.launch_limit.throttle()
    batch = to_device(collated, device)
    torch.manual_seed(seed)
    moving: AbstractContextManager[None] = (
        offloaded(context.model, pinned=device.type == "cuda")
        if state.savings.offloading
        else nullcontext()
    )
    mended: AbstractContextManager[None] = (
        nullcontext() if context.sharded is None else context.sharded.mended()
    )
    # Activations may be computed again in the backward pass.
    with mended, context.kernels.enabled(batch):
        with context.accelerator.autocast(), moving:
            loss = context.objective.loss(context.model, batch, context.kernels)
        mean = loss / targets
        context.accelerator.backward(state.scaler.scale(mean) if state.scaler else mean)
    context.launch_limit.launched(device)
    return loss.detach()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on `device`; the host does not wait for a card."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}
