"""Estimates, before money is spent, whether a training fits a GPU, and about how long it takes.

Nothing heavy is imported and no weight is loaded: the model's `config.json` is enough. Sizes are
decimal bytes. The formula is written out in `docs/evaluation.md`, with its errors against published
measurements; it estimates the peak that torch allocates, to which the allocator's slack and the
CUDA context are added. The trainer itself measures the truth in its first seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.device.shapes import Block, Experts, Linear, Shape, read_shape
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.estimate.weights import (
    adapted_layers,
    adapter_parameters,
    adapts,
    base_bytes,
    matrix_parameters,
    quantises,
)
from trainer.method_table import OptimizerKind, Quant

SLACK = 1.08  # reserved over allocated, the low end of what is seen in training (1.08 to 1.41)
CONTEXT_BYTES = 0.55e9  # CUDA context and workspaces: 0.36 to 0.65 GB are reported
SMALL_TENSOR = 4096  # elements under which bitsandbytes keeps moments in 32 bits


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the bytes of the worst moment are; `allocated` is their sum, `reserved` the need."""

    base: float
    adapter: float
    optimizer: float
    activations: float
    logits: float
    workspace: float
    allocated: float
    reserved: float


def estimate(config: Mapping[str, Any] | Shape, work: TrainingSetup) -> Memory:
    """Return the peak of one training step of the model that `config` (its config.json) describes.

    Raises:
        UnknownShapeError: the architecture's matrices are not known.
    """
    shape = read_shape(config)
    size = BYTES[work.precision]
    rows = work.tokens * work.micro_batch
    trained = adapter_parameters(shape, work)
    base = base_bytes(shape, work)
    adapter = trained * work.adapter_bytes * 2  # weights and gradients
    moments = trained * (8 if work.optimizer is OptimizerKind.ADAMW else 2.03)
    if work.bases is not None:  # made of coefficients, the matrices and their gradients are there
        adapter += matrix_parameters(shape, work) * work.adapter_bytes * 2
        # Tensors under 4096 elements keep 32-bit moments in every optimizer.
        moments = trained * (8 if work.bases < SMALL_TENSOR else moments / trained)
    if work.new_tokens:  # the copies of embedding and head, and the gradient of one of them
        adapter += 3 * shape.vocabulary * shape.hidden * size
    kept, live, brief = _activations(shape, work, rows)
    heads = work.micro_batch * (work.tokens if work.loss_tokens is None else work.loss_tokens)
    # Logits in the compute type, their float32 copy, and its gradient.
    logits = float(heads * shape.vocabulary * (size + 4 + 4))
    workspace = _unpacked_bytes(shape, work)
    if work.dora:
        adapted = (one for block in shape.text_blocks for one in adapted_layers(block, work))
        workspace = max([workspace, *(dora_bytes(one, work) for one in adapted)])
    # The head's moment is over before the backward pass of the last layer: the two never add up.
    if logits > live + brief:
        activations = kept
    else:
        activations, logits = kept + live + brief, 0.0
    allocated = base + adapter + moments + activations + logits + workspace
    return Memory(
        base=base,
        adapter=adapter,
        optimizer=moments,
        activations=activations,
        logits=logits,
        workspace=workspace,
        allocated=allocated,
        reserved=allocated * SLACK + CONTEXT_BYTES,
    )


def _unpacked_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return what weights take that exist in the compute type while they are computed with.

    A quantised linear layer unpacks itself, and again for its backward pass. The experts of a layer
    are unpacked all at once, as are unquantised ones with their adapter added: with checkpointing
    those of one layer are there, without it those of all. One that is adapted exists with its
    adapter and without, one tensor after the other.
    """
    quantised = work.quant is not Quant.NONE
    widest = max((o.weights for b in shape.text_blocks for o in b.linears if quantised), default=0)
    layers = [
        (block.count, [one for one in block.experts if _copied(one, work)])
        for block in shape.text_blocks
    ]
    totals = [(count, sum(one.weights for one in each)) for count, each in layers]
    there = (
        max(total for _, total in totals)
        if work.checkpointing
        else sum(count * total for count, total in totals)
    )
    twice = [one.weights for _, each in layers for one in each if adapts(one.name, work)]
    experts = there + max(twice, default=0)
    return float(max(widest, experts) * BYTES[work.precision])


def _copied(experts: Experts, work: TrainingSetup) -> bool:
    """Tell whether a tensor of experts is computed with as a copy: unpacked, or adapted."""
    return quantises(experts, work) or adapts(experts.name, work)


def dora_bytes(one: Linear, work: TrainingSetup) -> float:
    """Return what PEFT's DoRA holds at once to find the row lengths of one layer's weight.

    It multiplies B and A by way of a unit matrix of float32, which the graph keeps with its product
    with A. Then there are the product of both, the scaled product, its sum with the weight, and the
    weight itself if it had to be unpacked; the norm of a 16-bit sum is taken of a float32 copy.
    """
    size = BYTES[work.precision]
    copies = 3 * size + (0 if work.quant is Quant.NONE else size) + (4 if size < 4 else 0)
    return one.columns * (one.columns * 4 + work.r * size) + copies * one.weights


def _activations(shape: Shape, work: TrainingSetup, rows: int) -> tuple[float, float, float]:
    """Return the bytes kept for all layers, live in one layer, and brief in its backward pass."""
    blocks = shape.text_blocks
    live = max(_layer_bytes(shape, block, work) for block in blocks) * rows
    brief = max(_brief_bytes(shape, block, work) for block in blocks) * rows
    size = BYTES[work.precision]
    if work.checkpointing:
        layers = sum(block.count for block in blocks)
        return layers * shape.hidden * size * rows, live, brief
    kept = sum(block.count * _layer_bytes(shape, block, work) for block in blocks) * rows
    return kept, 0.0, brief


def _layer_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what one layer keeps of one token for its backward pass.

    The base is frozen, so a linear layer keeps its input only if it is adapted, or if it is
    quantised by a version of bitsandbytes that keeps it. A norm keeps its float32 input; attention
    keeps queries, keys, values and its output; the feed-forward part what its non-linearity needs.
    """
    size = BYTES[work.precision]
    norms = block.norms * shape.hidden * 4
    # Keys and values are spread out to the number of query heads where they are fewer.
    attention = size * (2 * block.queries + 2 * max(block.keys, block.queries))
    feed = size * block.feed_forward * (3 if block.gated else 2)
    inputs = {one.columns: 0.0 for one in adapted_layers(block, work)}
    for one in adapted_layers(block, work):
        # Layers that read the same thing share it; with dropout each keeps its own copy and mask.
        shared = one.columns * size
        inputs[one.columns] = (
            inputs[one.columns] + shared + one.columns
            if work.dropout
            else max(inputs[one.columns], shared)
        )
    kept = 0 if work.quant is Quant.NONE else size * sum(one.columns for one in block.linears)
    # DoRA keeps what the base and what the matrices gave, each to be multiplied by the lengths.
    results = 2 * size * sum(one.rows for one in adapted_layers(block, work)) if work.dora else 0
    # What reaches an expert is a copy of its own for each of those that a token chooses.
    routed = size * sum(one.chosen * one.columns for one in block.experts)
    return norms + attention + feed + results + routed + max(sum(inputs.values()), kept)


def _brief_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what the backward pass of one layer holds of one token at its widest moment."""
    size = BYTES[work.precision]
    return size * (2 * block.feed_forward + 2 * shape.hidden)


def largest_micro_batch(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, memory_bytes: float, batch_size: int
) -> int | None:
    """Return how many of `batch_size` sequences fit at once, or None if not even one does.

    `work.micro_batch` is ignored. The trainer halves it again if the device disagrees.
    """
    fitting = [
        count
        for count in range(1, batch_size + 1)
        if estimate(config, replace(work, micro_batch=count)).reserved <= memory_bytes
    ]
    return max(fitting, default=None)
