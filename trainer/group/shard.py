"""Shards a frozen 4-bit base over the cards of one machine, where one card cannot hold it.

Each card keeps its part of the packed weights of every block; a block is gathered before it
computes, and again for its backward pass, and given back after each. What travels are the packed
bytes themselves, never numbers, so every result has the bits of the whole base. It is done by
torch's FSDP2 (`fully_shard`). All else is whole on every card: adapter, embedding, head, norms,
and the scales of the packed weights, which are a thirtieth of them.

What follows from it, and is decided here alone:

- Every rank has to make the same passes in the same order, forward only ones too, since each of
  them gathers. A rank that has fewer portions of a step than another makes up for it
  (`trainer.estimate.cards.extra_passes`), scoring is done by all ranks alike, and what rank 0 alone
  does is done by `ShardedBase.led`.
- Values are not kept unpacked (`trainer.device.unpacked`), and a kernel does not read packed
  weights by itself: both look for `weight.quant_state`, which a sharded weight has not.
  bitsandbytes finds it at the layer, where it stays. What calls a layer as a module works as ever,
  such as `trainer.kernels.fewer_copies`.
- Methods that read the base's weights outside its passes are refused
  (`trainer.estimate.cards.sharding_problem`).

The host loads one rank after the other (`load_sharded`): it has to hold the packed base once,
beside the processes, and no card ever holds more than its part and one block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from trainer.errors import ConfigError
from trainer.estimate.cards import sharding_problem
from trainer.group.joined import NET_S, keep_forever
from trainer.group.peers import Peers
from trainer.method_table import MethodTable

T = TypeVar("T")
Wait = Callable[[Sequence[Any]], None]
POLL_S = 0.0005
LAST = -1
"""Announced after the last gather."""


@dataclass(frozen=True, kw_only=True)
class ShardedBase:
    """What a rank holds of a base whose blocks are sharded; bytes are of packed weights."""

    blocks: tuple[Any, ...]
    gathers: Gathers
    whole_bytes: int
    """Of all weights that are sharded, before that."""
    local_bytes: int
    """What is left of them on this card."""
    largest_block_bytes: int
    """Of one gathered block: its weights are whole on the card while it computes."""

    def led(self, peers: Peers, act: Callable[[], T]) -> T | None:
        """Let rank 0 alone do what needs the base; the others gather with it, and return None.

        For what only one rank is to do, such as measuring a pass.
        """
        gathers = self.gathers
        if peers.rank:
            while (number := gathers.hear()) != LAST:
                self.blocks[number].unshard()
                self.blocks[number].reshard()
            return None
        gathers.announces = True
        try:
            return act()
        finally:
            gathers.announces = False
            gathers.announce(LAST)

    @contextmanager
    def mended(self) -> Iterator[None]:
        """Give back what is gathered if a pass inside is cut short, so that others can follow."""
        try:
            yield
        except BaseException:
            for block in self.blocks:
                block.reset_iter_state()
                block.reshard()
            raise


def load_sharded(
    load: Callable[[torch.device], Any],
    method: MethodTable,
    peers: Peers,
    *,
    device: torch.device,
    wait: Wait,
) -> tuple[Any, ShardedBase]:
    """Return a base of which this rank's card holds a part, loaded by one rank after the other.

    `load` loads it whole on the device that it is given: the host. `wait` waits for operations
    of all ranks, and raises where one is lost (`trainer.group.waiting.Waiter.wait`).

    Raises:
        ConfigError: the method or the base cannot be sharded; says what can.
    """
    problem = sharding_problem(method)
    if problem:
        raise ConfigError([problem])
    base, found = None, None
    gathers = Gathers(new_group("gloo"), wait)
    group = new_group("nccl") if device.type == "cuda" else gathers.group
    for rank in range(peers.size):
        if rank == peers.rank:
            base = load(torch.device("cpu"))
            found = shard_base(base, group, gathers, device=device)
        peers.gather(rank)  # the others wait: the host holds one whole base at a time
    if base is None or found is None:
        raise ValueError(f"rank {peers.rank} is none of {peers.size}")
    gather_once(found)
    return base, found


def new_group(backend: str) -> dist.ProcessGroup:
    """Return a group of all ranks; every rank has to call it.

    It goes with the process, as that of the exchange (`trainer.group.joined.Joined.abandon`).
    """
    group = dist.new_group(backend=backend, timeout=timedelta(seconds=NET_S))
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError("this process is no rank of the group")
    keep_forever(group)
    return group


def shard_base(
    base: Any, group: dist.ProcessGroup, gathers: Gathers, *, device: torch.device
) -> ShardedBase:
    """Leave on `device` this rank's part of each block's packed weights, and all else whole.

    The base may lie on the host; block by block it comes to the device. Adapters are put on it
    afterwards, or before: they are never sharded. Nothing is sent yet.

    Raises:
        ConfigError: it has no blocks with 4-bit layers, or experts that are packed.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    blocks = list(blocks_of(base))
    _require_linear_layers(base, blocks)
    mesh = DeviceMesh.from_group(group, device.type)
    whole = [sum(one.weight.nbytes for one in packed_layers(block)) for block in blocks]
    for number, block in enumerate(blocks):
        layers = packed_layers(block)
        for layer in layers:
            layer.weight.quant_state.to(device)
            layer.quant_state = layer.weight.quant_state  # where bitsandbytes looks for it
        settings = [
            {name: getattr(one.weight, name) for name in ("compress_statistics", "quant_type")}
            for one in layers
        ]
        packed = {id(one.weight) for one in layers}
        ignored = {value for value in block.parameters() if id(value) not in packed}
        # True, since each block is the root of its own tree, and those are not given back.
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
        block.set_custom_all_gather(gathers.of_block(number))
        for layer, values in zip(layers, settings, strict=True):
            for name, value in values.items():  # PEFT reads them where it puts an adapter
                setattr(layer.weight, name, value)
    _bring_the_rest(base, device)
    local = sum(one.weight.to_local().nbytes for block in blocks for one in packed_layers(block))
    return ShardedBase(
        blocks=tuple(blocks),
        gathers=gathers,
        whole_bytes=sum(whole),
        local_bytes=local,
        largest_block_bytes=max(whole),
    )


def gather_once(sharded: ShardedBase) -> None:
    """Gather every block once, on all ranks: that what is whole again can be trained with.

    Tensors of the first gather are used for all later ones, so it must not come in a pass that
    torch forbids to train with afterwards. And what does not work is seen before a row is read.
    """
    for block in sharded.blocks:
        block.unshard()
        block.reshard()


def blocks_of(base: Any) -> Iterator[Any]:
    """Yield the blocks of a base: the members of its outermost lists that have 4-bit layers."""
    inside: set[int] = set()
    for module in base.modules():
        if not isinstance(module, nn.ModuleList) or id(module) in inside:
            continue
        blocks = [one for one in module if packed_layers(one)]
        if blocks:
            inside.update(id(one) for one in module.modules())
            yield from blocks


def packed_layers(block: Any) -> list[Any]:
    """Return the 4-bit linear layers of a block."""
    from bitsandbytes.nn import Linear4bit

    return [one for one in block.modules() if isinstance(one, Linear4bit)]


def _require_linear_layers(base: Any, blocks: list[Any]) -> None:
    """Raise `ConfigError` for a base whose weights are not what is sharded here."""
    from trainer.adapters.experts import quantised_experts

    name = type(base).__name__
    if not blocks:
        problem = f"model.id: {name} has no blocks with 4-bit layers, so it cannot be sharded over"
        raise ConfigError([f"{problem} several cards; take a card that holds it"])
    if any(True for _ in quantised_experts(base)):
        problem = f"model.id: the experts of a {name} cannot be sharded over several cards"
        raise ConfigError([f"{problem}; take a card that holds them"])


def _bring_the_rest(base: Any, device: torch.device) -> None:
    """Put on the device what is not sharded: embedding, head, norms, buffers."""
    from torch.distributed.tensor import DTensor

    for value in (*base.parameters(), *base.buffers()):
        if not isinstance(value, DTensor) and value.device != device:
            value.data = value.data.to(device)


class Gathers:
    """The gathers of all blocks: each is awaited as `Peers` are, and may be announced."""

    def __init__(self, group: dist.ProcessGroup, wait: Wait) -> None:
        self.group = group
        self.wait = wait
        self.announces = False
        """Whether rank 0 says before each gather which block it is of."""

    def announce(self, number: int) -> None:
        """Tell the other ranks which block is gathered next, or that it was the last."""
        word = torch.tensor([number])
        self.wait([dist.broadcast(word, group=self.group, group_src=0, async_op=True)])

    def hear(self) -> int:
        """Return what rank 0 announces next."""
        word = torch.zeros(1, dtype=torch.int64)
        self.wait([dist.broadcast(word, group=self.group, group_src=0, async_op=True)])
        return int(word)

    def of_block(self, number: int) -> Any:
        """Return how FSDP2 gathers one block.

        On the host's network it looks up while it waits, since in a wait inside gloo no signal is
        heard and no notice seen. On a card the stream waits, not this process.
        """
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

        gathers = self

        class BlockGather(DefaultAllGather):
            def __call__(
                self,
                output_tensor: torch.Tensor,
                input_tensor: torch.Tensor,
                group: dist.ProcessGroup,
                async_op: bool = False,  # noqa: FBT001, FBT002
            ) -> dist.Work | None:
                if gathers.announces and dist.get_rank(gathers.group) == 0:
                    gathers.announce(number)
                if input_tensor.is_cuda:
                    found: dist.Work | None = super().__call__(
                        output_tensor, input_tensor, group, async_op
                    )
                    return found
                parts = [*output_tensor.chunk(dist.get_world_size(group))]
                gathers.wait([dist.all_gather(parts, input_tensor, group=group, async_op=True)])
                return None

        return BlockGather()


def await_all(works: Sequence[Any]) -> None:
    """Wait for operations to end, and raise what went wrong; signals are heard meanwhile."""
    for work in works:
        while not work.is_completed():
            time.sleep(POLL_S)
        work.wait()
