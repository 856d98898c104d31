"""What the ranks of one training have alike: how they compute, and a digest of the state."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

import torch

from trainer.method_table import OptimizerKind
from trainer.saving.memory_savings import MemorySavings, read_savings
from trainer.saving.state import TrainingState, bit_sums
from trainer.training.fit import apply_setup, current_setup
from trainer.training.saving_order import PAGED, MemorySetup
from trainer.training.train_context import TrainContext

OPTIMIZERS = (None, OptimizerKind.ADAMW8BIT, PAGED)
"""In the order of `next_saving`; None is the configured one."""


def apply_common_setup(context: TrainContext, state: TrainingState) -> None:
    """Compute as the rank with the least memory has to; each may keep its own base unpacked."""
    own = current_setup(context, state)
    words = context.peers.gather([own.micro_batch, own.savings.to_json()])
    setups = [(size, read_savings(savings)) for size, savings in words]
    apply_setup(
        context,
        state,
        replace(
            own,
            micro_batch=min(size for size, _ in setups),
            savings=strongest([savings for _, savings in setups]),
        ),
    )


def strongest(savings: list[MemorySavings]) -> MemorySavings:
    """Return everything that is switched on in any of these."""
    return MemorySavings(
        checkpointing=any(one.checkpointing for one in savings),
        offloading=any(one.offloading for one in savings),
        optimizer=max((one.optimizer for one in savings), key=OPTIMIZERS.index),
    )


def common_setup(context: TrainContext, state: TrainingState) -> MemorySetup:
    """Return the present setup, with an unpacked base if any rank still has one.

    So all ranks save memory in the same next way.
    """
    own = current_setup(context, state)
    return replace(own, unpacked=any(context.peers.gather(own.unpacked)))


def summed_tensors(context: TrainContext, state: TrainingState) -> dict[str, torch.Tensor]:
    """Return what backward passes give gradients: parameters, and the matrices of NOLA."""
    found: dict[str, torch.Tensor] = dict(state.parameters)
    if context.peers.size > 1:
        buffers = context.model.named_buffers()
        found |= {f"buffer {name}": one for name, one in buffers if one.requires_grad}
    return found


def state_digest(state: TrainingState) -> int:
    """Return 64 bits that change with any bit of the parameters, the moments and the loss scale.

    As in `trainer.saving.state.digest`, bit patterns are summed per tensor; waits for the device.
    """
    tensors: dict[str, torch.Tensor] = dict(state.parameters)
    plain: dict[str, Any] = {
        "micro_batch": state.counters.micro_batch,
        "savings": asdict(state.savings),
        "scaler": state.scaler.state_dict() if state.scaler else None,
    }
    for name, parameter in state.parameters.items():
        for entry, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{entry}"] = _as_int32(value)
            else:
                plain[f"{name}/{entry}"] = repr(value)
    # Moments that were restored are in any order, another one in each process.
    tensors = dict(sorted(tensors.items()))
    hashed = hashlib.sha256(json.dumps([plain, [*tensors]], sort_keys=True).encode())
    for kind in sorted({value.device.type for value in tensors.values()}):
        sums, order = bit_sums({k: v for k, v in tensors.items() if v.device.type == kind})
        hashed.update(sums.cpu().numpy().tobytes())
        hashed.update(json.dumps(order).encode())
    return int.from_bytes(hashed.digest()[:8], "big", signed=True)


def _as_int32(value: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor of any type in numbers of 32."""
    if value.element_size() == 4:
        return value
    octets = value.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = octets[: octets.numel() // 4 * 4]
    if octets.numel() == whole.numel() and whole.data_ptr() % 4 == 0:
        return whole.view(torch.int32)
    return octets.to(torch.int32)
