"""Decides what several cards of one machine do in one training; pure arithmetic.

The plan and the trainer ask the same functions, so what is shown is what is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from trainer.device.shapes import Shape
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.memory import GRADIENT_BYTES, estimate
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.weights import adapter_parameters, base_bytes, sharded_bytes
from trainer.method_table import MethodKind, MethodTable
from trainer.text import gigabytes

GATHERS = 2
"""Of the whole base in each micro-pass: for the forward pass, and for the backward pass."""


class Ranked(Protocol):
    """One of several ranks (`trainer.group.peers.Peers`), as far as it is needed here."""

    size: int

    def mine(self, count: int) -> range:
        """Return which of `count` numbered pieces of work this rank does."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How the cards of a machine share the steps of a training, and perhaps its base."""

    cards: int
    portions: int
    """Micro-batches of a step."""
    sharded: bool
    """Whether the base is sharded: it does not fit one card, and its parts do."""
    base_bytes: float
    """Of the base, on each card."""
    whole_base_bytes: float
    """Of the base as one card would hold it."""
    exchange_s: float
    """Seconds in each step for exchanging gradients."""
    gather_s: float
    """Seconds in each step for gathering a sharded base."""
    pass_s: float
    """The same for one forward pass, as of each token of a written answer."""

    @property
    def idle(self) -> int:
        """How many cards have nothing to do."""
        return max(0, self.cards - self.portions)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "idle": self.idle}


def sharing_text(found: Mapping[str, Any]) -> str:
    """Say that the base is sharded, and what that costs; empty if it is not.

    `found` is a `Sharing` as plain values.
    """
    if not found["sharded"]:
        return ""
    return (
        f"the base is sharded over {found['cards']} cards: {gigabytes(found['base_bytes'])} a card "
        f"instead of {gigabytes(found['whole_base_bytes'])}; each micro-batch gathers it anew"
    )


def rounds(portions: int, cards: int) -> int:
    """Return how many micro-batches of a step the busiest card computes one after the other."""
    return -(-portions // cards)


def even_micro_batch(batch_size: int, cards: int, *, largest: int) -> int:
    """Return how many rows go at once so that cards share them evenly, at most `largest`.

    It takes no more rounds than with the largest, and each is shorter: 16 rows on 4 cards of which
    each holds 3 are two rounds of 2 rows, not of 3.
    """
    return rounds(batch_size, cards * rounds(rounds(batch_size, largest), cards))


def extra_passes(portions: int, peers: Ranked) -> int:
    """Return how many passes of a step a rank has to make beyond its own.

    Where the base is sharded, each pass gathers it from all ranks: all have to make as many. What
    an extra pass computes is thrown away.
    """
    return rounds(portions, peers.size) - len(peers.mine(portions))


def shards_base(
    shape: Shape, work: TrainingSetup, *, memory_bytes: float, cards: int, method: MethodTable
) -> bool:
    """Decide whether the base is sharded over the cards of a machine.

    It is where one card cannot hold it even row by row with all that saves memory, and a part of
    it would fit; and where the weights alone are too large, since then nothing else can help.
    `work` is the setup for rows as long as the config allows, so that the plan and
    the trainer, which knows the rows, decide alike.
    """
    if cards < 2 or work.sharded or sharding_problem(method):
        return False
    loop = replace(work.loop, checkpoints_on_host=True, unpacked=False)
    least = replace(work, micro_batch=1, checkpointing=True, cards=cards, loop=loop)
    if estimate(shape, least).need.high <= memory_bytes:
        return False
    if base_bytes(shape, least) > memory_bytes:
        return True
    return estimate(shape, replace(least, sharded=True)).need.high <= memory_bytes


def sharing(shape: Shape, work: TrainingSetup, *, batch_size: int, gpu: TrainingGpu) -> Sharing:
    """Return how `work.cards` cards share a step of `batch_size` rows, and what they exchange."""
    portions, cards = rounds(batch_size, work.micro_batch), work.cards
    each = rounds(portions, cards)
    apart = (cards - 1) / cards
    gathered = sharded_bytes(shape, work) * apart if work.sharded else 0.0
    pass_s = gathered / gpu.pcie_bytes_per_s
    return Sharing(
        cards=cards,
        portions=portions,
        sharded=work.sharded,
        base_bytes=base_bytes(shape, work),
        whole_base_bytes=base_bytes(shape, replace(work, sharded=False)),
        exchange_s=exchanged_bytes(shape, work, batch_size=batch_size) / gpu.pcie_bytes_per_s,
        gather_s=GATHERS * each * pass_s,
        pass_s=pass_s,
    )


def exchanged_bytes(shape: Shape, work: TrainingSetup, *, batch_size: int) -> float:
    """Return how much a card sends to the others in a step of `batch_size` rows.

    Each sends its part of each of its gradients to the others, and then the sums that it has
    made: (k+1)(W-1)/W G bytes for k micro-batches a card, W cards and gradients of G bytes.
    """
    each = rounds(rounds(batch_size, work.micro_batch), work.cards)
    apart = (work.cards - 1) / work.cards
    return (each + 1) * apart * (adapter_parameters(shape, work) * GRADIENT_BYTES)


def idle_warning(found: Mapping[str, Any], *, batch_size: int) -> str:
    """Return what to warn of where cards have nothing to do, with the fix; else nothing.

    `found` is a `Sharing` as plain values; with `machines` if the cards are those of several.
    """
    idle, cards, portions = found["idle"], found["cards"], found["portions"]
    if not idle:
        return ""
    batches = "1 micro-batch" if portions == 1 else f"{portions} micro-batches"
    larger = rounds(batch_size, portions) * cards
    machines = found.get("machines", 1)
    key, least = "vm.gpus", portions
    if machines > 1:
        key, least = "vm.nodes", rounds(portions, cards // machines)
    # Fewer cards may not hold a sharded base, and fewer machines may have as many idle cards.
    is_fix = not found["sharded"] and (machines == 1 or least < machines)
    fewer = f", or `{key}` to {least}" if is_fix else ""
    return (
        f"{idle} of {cards} cards {'has' if idle == 1 else 'have'} nothing to do: a step of "
        f"{batch_size} rows is {batches}; set `train.batch_size` to {larger}{fewer}"
    )


def sharding_problem(method: MethodTable) -> str:
    """Return why a base cannot be sharded for this method, and what can be done; else nothing."""
    other = "take a card that holds it whole"
    if not method.storage.four_bit:
        return (
            f"method.quant: a base in `{method.storage}` cannot be sharded over several cards; "
            f"take `nf4`, or {other}"
        )
    if method.kind.dora or method.kind is MethodKind.MISS:
        return (
            f"method.kind: `{method.kind}` reads weights of the base that are sharded over several "
            f"cards; take `qlora`, or {other}"
        )
    if method.init.changes_base:
        return (
            f"method.init: `{method.init}` changes weights of the base that are sharded over "
            f"several cards; leave it out, or {other}"
        )
    return ""
