"""Counts the bytes of the frozen base and the numbers that are trained; pure arithmetic."""

from __future__ import annotations

from trainer.config import PrecisionChoice
from trainer.device.shapes import Block, Experts, Linear, Shape
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.method_table import Quant

PACKED_BYTES = 0.5
"""Of a 4-bit weight, without its scales."""


def base_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return the bytes of the frozen weights as they lie in the GPU's memory.

    A 4-bit weight takes half a byte and its share of the scales: one float32 per 64 weights, or
    with double quantisation one byte per 64 and a float32 per 64 x 256 of those. An 8-bit weight
    takes a byte; its scales, one float32 per row, are left out. What is not quantised takes the
    bytes of the compute type: embeddings, head, norms, routers, and experts if they are not. A loop
    may hold them in float32, or quantise the head, or keep the values of 4-bit layers as well.
    """
    size = BYTES[work.precision]
    fp16 = work.precision is PrecisionChoice.FP16
    packed = packed_bytes(work)
    total = 0.0
    for block in shape.blocks:
        for one in block.linears:
            each = packed
            if one.name in block.never_quantised:
                each = 4.0 if fp16 else float(size)
            elif work.loop.unpacked and work.quant.four_bit:
                each += size
            total += block.count * one.weights * each
        for stack in block.experts:
            each = packed if quantises(stack, work) else float(size)
            total += block.count * stack.weights * each
    other = 4 if work.loop.upcast else size
    matrix = shape.vocabulary * shape.hidden
    head = 0.0 if shape.tied and not work.loop.untied else float(matrix)
    head *= packed if work.loop.quantised_head else other
    if work.sharded:
        total -= sharded_bytes(shape, work) * (1 - 1 / work.cards)
    return total + (matrix + shape.small_parameters) * other + head


def sharded_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return the bytes of the weights that cards share: those that are packed, without scales."""
    return sum(block.count * gathered_bytes(block, work) for block in shape.blocks)


def gathered_bytes(block: Block, work: TrainingSetup) -> float:
    """Return the packed bytes of one block, which are on a card while it computes."""
    if not work.quant.four_bit:
        return 0.0
    return sum(
        PACKED_BYTES * one.weights for one in block.linears if one.name not in block.never_quantised
    )


def quantises(experts: Experts, work: TrainingSetup) -> bool:
    """Tell whether a tensor of experts is quantised: bitsandbytes can in 4 bits, up to a size."""
    return work.quant.four_bit and experts.quantisable


def quantised_parameters(shape: Shape, work: TrainingSetup) -> int:
    """Return how many of the weights of the layers' matrices lie in 4 or 8 bits."""
    if work.quant is Quant.NONE:
        return 0
    return sum(
        block.count
        * (
            sum(o.weights for o in block.linears if o.name not in block.never_quantised)
            + sum(o.weights for o in block.experts if quantises(o, work))
        )
        for block in shape.blocks
    )


def packed_bytes(work: TrainingSetup) -> float:
    """Return the bytes of one weight of a layer that is quantised if any is."""
    if work.stored_bytes is not None:
        return work.stored_bytes
    if work.quant is Quant.NONE:
        return float(BYTES[work.precision])
    if work.quant is Quant.INT8:
        return 1.0
    return 0.5 + 1 / 64 + 4 / (64 * 256) if work.double_quant else 0.5 + 4 / 64


def adapter_parameters(shape: Shape, work: TrainingSetup) -> int:
    """Return how many numbers are trained: LoRA's, a length per row for DoRA, whole matrices.

    NOLA trains two times `bases` per layer instead; a full training has every weight.
    """
    if work.full:
        twice = shape.tied and work.loop.untied
        return shape.parameters + (shape.vocabulary * shape.hidden if twice else 0)
    if work.bases is not None:
        layers = sum(block.count * len(adapted_layers(block, work)) for block in shape.text_blocks)
        return layers * 2 * work.bases
    lengths = sum(
        block.count * sum(one.rows for one in adapted_layers(block, work))
        for block in shape.text_blocks
    )
    if work.miss:  # one matrix [r, rows] a layer
        return sum(
            block.count * sum(work.r * one.rows for one in adapted_layers(block, work))
            for block in shape.text_blocks
        )
    if work.variant == "vera":  # two vectors a layer beside matrices that all layers share
        return sum(
            block.count * sum(work.r + one.rows for one in adapted_layers(block, work))
            for block in shape.text_blocks
        )
    pairs = 2 if work.variant == "loha" else 1
    saved = min(work.saved, 1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    head = work.r * (shape.vocabulary + shape.hidden) if work.head else 0
    return pairs * matrix_parameters(shape, work) + (lengths if work.dora else 0) + saved + head


def matrix_parameters(shape: Shape, work: TrainingSetup) -> int:
    """Return the elements of LoRA's matrices: r x (columns + rows) for every adapted layer.

    An adapted tensor of fused experts has as much for each expert.
    """
    return sum(
        block.count
        * work.r
        * (
            sum(one.columns + one.rows for one in adapted_layers(block, work))
            + sum(
                one.count * (one.columns + one.rows)
                for one in block.experts
                if adapts(one.name, work)
            )
        )
        for block in shape.text_blocks
    )


def adapted_layers(block: Block, work: TrainingSetup) -> list[Linear]:
    """Return the linear layers of a block that get an adapter."""
    return [
        one for one in block.linears if one.name not in block.unadapted and adapts(one.name, work)
    ]


def adapts(name: str, work: TrainingSetup) -> bool:
    """Tell whether layers of that name get an adapter."""
    return work.targets is None or name in work.targets
