"""Adds up the gradients of micro-batches that several ranks computed, with the bits of one process.

In round j every rank has the gradient of its j-th micro-batch. Each owns a part of the tensors: it
gets that part from all (all_to_all) and adds it in the order of the micro-batches' numbers, in
float32, as autograd does in one process. After the last round all get all sums (all_gather). A
round goes on while the next backward pass is computed. A rank sends (k+1)(W-1)/W of the gradient's
bytes in a step of k rounds, and needs 2+1/W times those bytes beside its own gradient.

Where a micro-batch gave a tensor no gradient, -0.0 is sent: x + -0.0 has the bits of x for every x,
-0.0 included. Words on the host say in each round whether a rank cannot go on, and which tensors
have a gradient at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from trainer.device.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from trainer.errors import CardsDisagree, DoesNotFit
from trainer.group.peers import GiveUp, StepGivenUp
from trainer.group.waiting import Completable, Waiter
from trainer.group.words import RoundWord, read_round_word

ALIGNED = 16
"""Elements: tensors begin in the buffer as aligned as torch's own memory, so that bits agree."""


class Channel:
    """The ranks' means to talk: a group for gradients, one for words on the host."""

    def __init__(self, *, rank: int, size: int, waiter: Waiter, data: Any, host: Any) -> None:
        self.rank = rank
        self.size = size
        self.waiter = waiter
        self.data = data
        self.host = host
        self.sent_bytes = 0
        """Of gradients and sums, to other ranks."""

    def gather_ints(self, values: list[int]) -> tuple[Completable, list[torch.Tensor]]:
        """Begin to gather as many integers of each rank; nothing is there before it is done."""
        own = torch.tensor(values, dtype=torch.int64)
        return self.gather_tensor(own, self.host)

    def gather_tensor(
        self, own: torch.Tensor, group: Any
    ) -> tuple[Completable, list[torch.Tensor]]:
        """Begin to gather a tensor of the same shape from each rank."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        return self.gather_into(found, own, group), found

    def gather_into(self, found: list[torch.Tensor], own: torch.Tensor, group: Any) -> Completable:
        """Begin to gather a tensor of each rank into those given."""
        work: Completable = dist.all_gather(found, own, group=group, async_op=True)
        return work


@dataclass(frozen=True)
class Buffers:
    """The memory of an exchange, which is used again in every step."""

    key: tuple[tuple[str, torch.Size], ...]
    """The tensors that it was made for."""
    sent: torch.Tensor
    """A whole gradient, in one part for each rank; after the last round, the sums."""
    received: torch.Tensor
    """This rank's part of the gradient of every rank."""
    summed: torch.Tensor
    """This rank's part of the sum."""
    views: tuple[torch.Tensor, ...]
    """Where in `sent` each tensor has its gradient, laid out in memory as the tensor is."""


def make_buffers(tensors: Mapping[str, torch.Tensor], size: int) -> Buffers:
    """Return buffers for gradients of these tensors, in the order of their names.

    Raises:
        DoesNotFit: there is no memory for them.
    """
    ordered = sorted(tensors.items())
    wrong = [name for name, one in ordered if one.dtype is not torch.float32]
    if wrong:
        raise ValueError(f"gradients are added up in float32, and {wrong[0]} has another type")
    places, end = [], 0
    for _, one in ordered:
        places.append(end)
        end += -(-one.numel() // ALIGNED) * ALIGNED
    part = -(-end // (size * ALIGNED)) * ALIGNED
    device = ordered[0][1].device
    try:
        sent, received = (torch.zeros(size * part, device=device) for _ in range(2))
        summed = torch.zeros(part, device=device)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"the exchange of gradients between {size} cards does not fit into the memory of one; "
            f"lower `method.r`, or rent a larger GPU ({error})"
        ) from error
    views = (
        sent.as_strided(one.shape, one.stride(), place)
        for (_, one), place in zip(ordered, places, strict=True)
    )
    return Buffers(
        key=buffer_key(tensors), sent=sent, received=received, summed=summed, views=tuple(views)
    )


def buffer_key(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, torch.Size], ...]:
    """Return what tensors must have alike to be exchanged through the same buffers."""
    return tuple((name, one.shape) for name, one in sorted(tensors.items()))


class JoinedSum:
    """The sum over the micro-batches of one step; at most one round is under way."""

    def __init__(
        self, channel: Channel, buffers: Buffers, tensors: Mapping[str, torch.Tensor], count: int
    ) -> None:
        self._channel = channel
        self._buffers = buffers
        self._tensors = [one for _, one in sorted(tensors.items())]
        self._count = count
        self._rounds = -(-count // channel.size)
        self._round = 0
        self._under_way: list[Completable] = []
        self._words: list[torch.Tensor] = []
        self._present: set[int] = set()
        self._present_anywhere: set[int] = set()
        self._text = ""
        device = buffers.sent.device
        self._losses = torch.zeros(self._rounds, dtype=torch.float64, device=device)

    def add(self, number: int, loss: torch.Tensor) -> None:
        """Send the gradients that a pass has left, once the round before is added up."""
        self._complete()
        self._losses[number // self._channel.size] = loss
        for place, (view, tensor) in enumerate(
            zip(self._buffers.views, self._tensors, strict=True)
        ):
            if tensor.grad is None:
                view.fill_(-0.0)
            else:
                view.copy_(tensor.grad)
                tensor.grad = None
                self._present.add(place)
        self._launch(GiveUp.NO)

    def give_up(self, reason: GiveUp, text: str) -> NoReturn:
        """Take part in the next round, and say in it that it is the last."""
        self._text = text
        self._complete()
        self._launch(reason)
        self._complete()
        raise AssertionError("a round that was given up ended well")

    def finish(self) -> torch.Tensor:
        """Take part in the rounds that are left, and take all sums as gradients."""
        while self._round < self._rounds:  # without a micro-batch of its own
            self._complete()
            self._launch(GiveUp.NO)
        self._complete()
        channel, buffers = self._channel, self._buffers
        parts = [*buffers.sent.chunk(channel.size)]
        losses_work, losses = channel.gather_tensor(self._losses, channel.data)
        channel.waiter.wait([channel.gather_into(parts, buffers.summed, channel.data), losses_work])
        channel.sent_bytes += (channel.size - 1) * buffers.summed.nbytes
        for place, (view, tensor) in enumerate(zip(buffers.views, self._tensors, strict=True)):
            tensor.grad = view if place in self._present_anywhere else None
        total = torch.zeros((), dtype=torch.float64, device=buffers.sent.device)
        for number in range(self._count):
            total += losses[number % channel.size][number // channel.size]
        return total

    def _workers(self, number: int) -> int:
        """Return how many ranks have a micro-batch in a round: the first so many."""
        return min(self._channel.size, self._count - number * self._channel.size)

    def _launch(self, reason: GiveUp) -> None:
        """Begin a round: words to all, and to each rank its part of this rank's gradient."""
        channel, buffers = self._channel, self._buffers
        part, workers = buffers.summed.numel(), self._workers(self._round)
        word = RoundWord(
            reason=reason,
            count=self._count,
            number=self._round,
            present=frozenset(self._present),
        )
        words_work, self._words = channel.gather_ints(word.to_ints(len(self._tensors)))
        working = channel.rank < workers
        work: Completable = dist.all_to_all_single(
            buffers.received[: workers * part],
            buffers.sent if working else buffers.sent[:0],
            [part if rank < workers else 0 for rank in range(channel.size)],
            [part if working else 0] * channel.size,
            group=channel.data,
            async_op=True,
        )
        if working:
            channel.sent_bytes += (channel.size - 1) * buffers.summed.nbytes
        self._under_way = [words_work, work]
        self._round += 1

    def _complete(self) -> None:
        """Wait for the round under way, if there is one, and add up what it brought."""
        if not self._under_way:
            return
        self._channel.waiter.wait(self._under_way)
        self._under_way = []
        number = self._round - 1
        words = [read_round_word(one.tolist()) for one in self._words]
        if any((word.count, word.number) != (self._count, number) for word in words):
            raise CardsDisagree("the cards have not cut a step into the same micro-batches")
        reason = max(word.reason for word in words)
        if reason is not GiveUp.NO:
            ranks = [rank for rank, word in enumerate(words) if word.reason is reason]
            own = self._text if self._channel.rank in ranks else ""
            raise StepGivenUp(reason, own or f"on card {ranks[0]}")
        for word in words:
            self._present_anywhere |= word.present
        summed = self._buffers.summed
        parts = self._buffers.received.chunk(self._channel.size)
        for rank in range(self._workers(number)):
            if number == rank == 0:
                summed.copy_(parts[0])
            else:
                summed += parts[rank]
