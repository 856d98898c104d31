"""Loads the base onto the card of this rank: whole, or its part where one card cannot hold it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer.device.count import find_shape
from trainer.device.shapes import UnknownShapeError
from trainer.errors import ConfigError
from trainer.estimate.cards import sharing_text
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.training import estimate_training, is_sharded
from trainer.group.peers import Peers
from trainer.job.context import JobContext
from trainer.job.prepare import PreparedInputs
from trainer.job.set_up import gpu_at_hand

if TYPE_CHECKING:
    from trainer.group.shard import ShardedBase

CARD_BYTES = "QFT_CARD_BYTES"
"""The variable with the memory of the card that a process without one plays, in bytes."""

NOT_OVER_MACHINES = (
    "the base does not fit one card, and sharding it over the cards of one machine is not possible"
    " with several machines yet; take one machine with more cards (`vm.gpus`, and `vm.nodes: 1`), a"
    " larger card, or a smaller base"
)


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """How the base is loaded."""

    sharded: bool = False
    text: str = ""
    """What it means, for the log."""


def plan_base(job: JobContext, prepared: PreparedInputs) -> BasePlan:
    """Decide whether the ranks share the base, as `qft plan` does; all of them decide alike."""
    gpu, cards = gpu_at_hand(prepared) or played_card(prepared, os.environ), job.peers.size
    several = cards > job.peers.local_size
    if gpu is None or cards < 2:
        return BasePlan()
    try:
        shape = find_shape(prepared.model_config)
    except UnknownShapeError:
        return BasePlan()
    wanted = job.peers.gather(is_sharded(job.config, shape, gpu=gpu, cards=cards))
    if not any(wanted):  # a card may have a little less memory than another of its kind
        return BasePlan()
    if several:
        raise ConfigError([NOT_OVER_MACHINES])
    found = estimate_training(job.config, shape, gpu=gpu, cards=cards, sharded=True)
    return BasePlan(sharded=True, text=sharing_text(found["sharing"]))


def played_card(prepared: PreparedInputs, environment: Mapping[str, str]) -> TrainingGpu | None:
    """Return the card that a process on a processor plays; None if its size is not given."""
    size = environment.get(CARD_BYTES, "")
    if not size.isdecimal():
        return None
    return TrainingGpu(
        name="played", memory_bytes=float(size), precision=prepared.precision.compute, flops=1e12
    )


def load_on_card(
    job: JobContext,
    prepared: PreparedInputs,
    plan: BasePlan,
    load: Callable[[torch.device], Any],
) -> tuple[Any, ShardedBase | None]:
    """Return the base that `load` loads on a device, and what of it this rank holds if a part.

    Raises:
        ConfigError: the base cannot be sharded, or as `load` does.
    """
    if not plan.sharded:
        return load(prepared.device), None
    from trainer.group.joined import Joined
    from trainer.group.shard import load_sharded

    peers: Peers = job.peers
    if not isinstance(peers, Joined):
        raise TypeError("only ranks that are joined can share a base")
    job.on_message(plan.text)
    return load_sharded(
        load, job.config.method, peers, device=prepared.device, wait=peers.channel.waiter.wait
    )
