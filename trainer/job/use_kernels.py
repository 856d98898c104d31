"""Lets a training use the kernels that suit its base and card, and records which ones it has."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.job.context import JobContext
from trainer.job.keep_unpacked import keep_unpacked
from trainer.job.prepare import PreparedInputs
from trainer.kernels.choose import choose_kernels
from trainer.kernels.kernel_set import Card
from trainer.kernels.linear_4bit import BaseLinear4bit
from trainer.model import DTYPES
from trainer.training.objective import Packed
from trainer.training.train_context import TrainContext


def use_kernels(
    job: JobContext, prepared: PreparedInputs, context: TrainContext
) -> tuple[PreparedInputs, TrainContext]:
    """Return both with the kernels of this machine: named in the fingerprint, used by the loop.

    Other kernels compute other bits, so a checkpoint that names others is continued with a message.
    Without any, as on a processor, nothing is named. Where a kernel computes the base's 4-bit
    layers, their values are kept unpacked if memory is plenty, which changes no bit.
    """
    device = prepared.device
    on_card = device.type == "cuda"
    card = Card(
        device=device,
        capability=torch.cuda.get_device_capability(device) if on_card else None,
        dtype=DTYPES[prepared.precision.compute],
        exact=job.config.train.exact,
    )
    kernels = choose_kernels(context.model, card, job.config.train, job.on_message)
    if not kernels.facts:
        return prepared, context
    hardware = {**prepared.fingerprint["hardware"], "kernels": kernels.facts}
    objective = Packed(inner=context.objective) if kernels.packed else context.objective
    unpacked = context.unpacked
    for kernel in kernels.kernels:
        if isinstance(kernel, BaseLinear4bit):
            unpacked = keep_unpacked(kernel.layers, device, job.on_message, installed=False)
    return (
        replace(prepared, fingerprint={**prepared.fingerprint, "hardware": hardware}),
        replace(context, kernels=kernels, objective=objective, unpacked=unpacked),
    )
