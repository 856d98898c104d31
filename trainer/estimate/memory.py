"""Estimates, before money is spent, the peak memory of one step of a training on a GPU.

Nothing heavy is imported and no weight is loaded: the model's `config.json` is enough. Sizes are
decimal bytes. The formula is written out in `docs/memory.md`, with its errors against published
measurements; it estimates the peak that torch allocates, to which the allocator's slack and the
CUDA context are added. The trainer itself measures the truth in its first seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.device.shapes import Experts, Linear, Shape, read_shape
from trainer.estimate.activations import brief_bytes, kept_bytes, stream_bytes
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.estimate.span import Span
from trainer.estimate.weights import (
    adapted_layers,
    adapter_parameters,
    adapts,
    base_bytes,
    matrix_parameters,
    quantises,
)
from trainer.method_table import OptimizerKind, Quant

LOW, HIGH = 0.85, 1.15  # of the need: between them lie nine of ten published peaks
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

    @property
    def need(self) -> Span:
        """The need with the range in which nine of ten published peaks lie."""
        return Span(low=self.reserved * LOW, likely=self.reserved, high=self.reserved * HIGH)


def estimate(config: Mapping[str, Any] | Shape, work: TrainingSetup) -> Memory:
    """Return the peak of one training step of the model that `config` (its config.json) describes.

    Raises:
        UnknownShapeError: the architecture's matrices are not known.
    """
    shape, loop = read_shape(config), work.loop
    trained = adapter_parameters(shape, work)
    base = 0.0 if work.full else base_bytes(shape, work)
    adapter, moments = _trained_bytes(shape, work, trained)
    kept, backward = _activations(shape, work, work.tokens * work.micro_batch)
    if work.variant == "loha":  # the change of every weight is computed, and kept
        kept += 4 * sum(
            block.count * sum(one.weights for one in adapted_layers(block, work))
            for block in shape.text_blocks
        )
    logits = logits_bytes(shape, work)
    step = loop.step_bytes * trained
    workspace = _unpacked_bytes(shape, work)
    if work.dora:
        adapted = (one for block in shape.text_blocks for one in adapted_layers(block, work))
        workspace = max([workspace, *(dora_bytes(one, work) for one in adapted)])
    if not loop.accumulates:  # gradients appear while what was kept for them goes
        gradients = trained * loop.gradient_bytes
        adapter -= gradients
        step += gradients
    # The head's moment is over before the backward pass of the last layer, and that before the
    # optimizer's step: the three never add up.
    if step > kept + max(logits, backward) + workspace:
        activations, logits, workspace = 0.0, 0.0, step
    elif logits > backward:
        activations = kept
    else:
        activations, logits = kept + backward, 0.0
    static = base + adapter + moments + loop.buffer_bytes
    passing = activations + logits + workspace
    return Memory(
        base=base,
        adapter=adapter,
        optimizer=moments,
        activations=activations,
        logits=logits,
        workspace=workspace + loop.buffer_bytes,
        allocated=static + passing,
        reserved=static * loop.static_slack + passing * loop.slack + loop.context_bytes,
    )


def _trained_bytes(shape: Shape, work: TrainingSetup, trained: int) -> tuple[float, float]:
    """Return the bytes of trained weights with their gradients, and those of their moments."""
    loop = work.loop
    each = loop.trained_bytes + loop.gradient_bytes + loop.master_bytes
    adapter = trained * each
    eight_bit = work.optimizer is not OptimizerKind.ADAMW
    moment = 2.03 if eight_bit else 8 if loop.moment_bytes is None else loop.moment_bytes
    if loop.paged_moments:
        moment = 0
    moments = trained * moment
    if work.bases is not None:  # made of coefficients, the matrices and their gradients are there
        adapter += matrix_parameters(shape, work) * each
        # Tensors under 4096 elements keep 32-bit moments in every optimizer.
        moments = trained * (8 if work.bases < SMALL_TENSOR else moment)
    if work.new_tokens:  # the copies of embedding and head, and the gradient of one of them
        adapter += 3 * shape.vocabulary * shape.hidden * BYTES[work.precision]
    return adapter, moments


def logits_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return what the logits take at the worst moment of the loss."""
    loop = work.loop
    tokens = work.tokens if work.loss_tokens is None else work.loss_tokens
    rows = work.micro_batch * tokens
    rows = -(-rows // loop.head_parts)
    if loop.head_chunk_bytes is not None:
        rows = min(rows, int(loop.head_chunk_bytes / (4 * shape.vocabulary)))
    return float(rows * shape.vocabulary * loop.head_bytes)


def _unpacked_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return what weights take that exist in the compute type while they are computed with.

    A quantised linear layer unpacks itself, and again for its backward pass, and so does a head.
    The experts of a layer are unpacked all at once, as are unquantised ones with their adapter
    added: with checkpointing those of one layer are there, without it those of all. One that is
    adapted exists with its adapter and without, one tensor after the other.
    """
    quantised, size = work.quant is not Quant.NONE, work.loop.dequantised_bytes
    matrices = [o.weights for b in shape.text_blocks for o in b.linears if quantised]
    if quantised and work.loop.quantised_head:
        matrices.append(shape.vocabulary * shape.hidden)
    widest = max(matrices, default=0) * size
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
    return float(max(widest, experts * BYTES[work.precision]))


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


def _activations(shape: Shape, work: TrainingSetup, rows: int) -> tuple[float, float]:
    """Return the bytes kept from the forward pass, and what a layer's backward pass adds."""
    blocks = shape.text_blocks
    brief = max(brief_bytes(shape, block, work) for block in blocks) * rows
    if not work.checkpointing:
        return sum(b.count * kept_bytes(shape, b, work) for b in blocks) * rows, brief
    live = max(kept_bytes(shape, block, work) for block in blocks) * rows
    layers = 2 if work.loop.checkpoints_on_host else sum(block.count for block in blocks)
    return layers * shape.hidden * stream_bytes(work) * rows, live + brief


def largest_micro_batch(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, memory_bytes: float, batch_size: int
) -> int | None:
    """Return how many of `batch_size` sequences fit at once, or None if not even one does.

    `work.micro_batch` is ignored. The trainer halves it again if the device disagrees.
    """
    fitting = [
        count
        for count in range(1, batch_size + 1)
        if estimate(config, replace(work, micro_batch=count)).need.high <= memory_bytes
    ]
    return max(fitting, default=None)
