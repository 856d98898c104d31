"""What the training loop works with; nothing of it changes which numbers come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from trainer.adapters.adapter_method import AdapterMethod
from trainer.data.codec import Example
from trainer.device.determinism import Determinism
from trainer.device.device_queue import LaunchLimit
from trainer.device.unpacked import UnpackedBase
from trainer.eviction import PreemptionFlag
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet
from trainer.method_table import OptimizerKind
from trainer.schedule import Schedule
from trainer.training.objective import Objective
from trainer.training.samples import Samples
from trainer.training.validation import Validation

if TYPE_CHECKING:
    from trainer.group.shard import ShardedBase


class Accelerator(Protocol):
    """What the loop needs of `accelerate.Accelerator`, its device and precision."""

    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Choose types per operation while inside."""

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass."""


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """The model with its method, rows, schedule and device, as the loop uses them."""

    model: Any
    method: AdapterMethod
    objective: Objective
    accelerator: Accelerator
    schedule: Schedule
    examples: Sequence[Example]
    seed: int
    max_grad_norm: float
    flag: PreemptionFlag
    on_message: Callable[[str], None]
    on_saving: Callable[[str], None] = lambda _text: None
    """Hears what was done because memory did not suffice."""
    checkpointing: bool = False
    """Whether the config has activations computed again in the backward pass."""
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    """The configured one."""
    price_usd_per_h: float = 0.0
    measure_gpu: Callable[[], dict[str, Any]] = dict
    """Returns what the record of a step has of the card it was done on."""
    validation: Validation | None = None
    samples: Samples | None = None
    determinism: Determinism = field(default_factory=Determinism)
    kernels: KernelSet = NO_KERNELS
    launch_limit: LaunchLimit = field(default_factory=LaunchLimit)
    """How far passes are launched ahead, so that a notice finds little that is still to be done."""
    reads_late: bool = False
    """Whether the numbers of a step are read while the device does the passes of the next one.

    The same records come in the same order. On a card the host then never waits for the card.
    """
    refuses_host_sync: bool = False
    """Whether an operation of a step that makes the host wait for a card raises RuntimeError."""
    peers: Peers = ALONE
    """The ranks that share the micro-batches of a step."""
    sharded: ShardedBase | None = None
    """What this rank holds of a base that the ranks share: all have to make the same passes."""
    unpacked: UnpackedBase | None = None
    """The values of the base's 4-bit layers, where memory is plenty."""
