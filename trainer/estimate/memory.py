"""Estimates, before money is spent, the peak memory of one step of a training on a GPU.

Nothing heavy is imported and no weight is loaded: the model's `config.json` is enough. Sizes are
decimal bytes. The formula is written out in `docs/memory-points.md`, with its errors against
published measurements; it estimates the peak that torch allocates, to which the allocator's slack
and the CUDA context are added. The trainer itself measures the truth in its first seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.device.shapes import Block, Experts, Linear, Shape, read_shape
from trainer.estimate.activations import (
    brief_bytes,
    checkpointed_bytes,
    kept_bytes,
    kept_in_eight_bits,
    stream_bytes,
    traits_of,
)
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.estimate.span import Span
from trainer.estimate.weights import (
    adapted_layers,
    adapter_parameters,
    adapts,
    base_bytes,
    gathered_bytes,
    matrix_parameters,
    quantises,
)
from trainer.method_table import OptimizerKind, Quant

STATIC_HIGH = 1.03
"""What stays is known: weights and moments by number and type."""
SLACK_LOW, SLACK_HIGH = 1.0, 1.41
"""What is reserved over what comes and goes: up to 1.41 is reported of trainings."""
CONTEXT_LOW, CONTEXT_HIGH = -0.15e9, 0.2e9
"""Around a loop's own figure: 0.36 to 0.65 GB are reported of one process."""
EXCHANGE_COPIES = 2
"""Of the adapter in float32, flat: what is sent and what arrives; of the sum each card has a part
(`trainer/group/exchange.py`)."""
GRADIENT_BYTES = 4
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
    reserved_low: float
    reserved_high: float

    @property
    def need(self) -> Span:
        """The need with its range: what is to fit for sure is held to the upper end."""
        return Span(low=self.reserved_low, likely=self.reserved, high=self.reserved_high)


def estimate(config: Mapping[str, Any] | Shape, work: TrainingSetup) -> Memory:
    """Return the peak of one training step of the model that `config` (its config.json) describes.

    Raises:
        UnknownShapeError: the architecture's matrices are not known.
    """
    shape, loop = read_shape(config), work.loop
    trained = adapter_parameters(shape, work)
    base = 0.0 if work.full else base_bytes(shape, work)
    buffers = loop.buffer_bytes
    if work.cards > 1:
        buffers += (EXCHANGE_COPIES + 1 / work.cards) * GRADIENT_BYTES * trained
    adapter, moments = _trained_bytes(shape, work, trained)
    moments_of_step = [_worst_moment(shape, work)]
    step = 0.0 if _eight_bit(work) else loop.step_bytes * trained
    if not work.accumulates:  # gradients appear while what was kept for them goes
        gradients = trained * loop.gradient_bytes
        adapter -= gradients
        step += gradients
        moments_of_step.append(_last_moment(shape, work, gradients))
    moments_of_step.append(_Moment(workspace=step))  # by then everything of the passes is gone
    moment = max(moments_of_step, key=lambda one: one.bytes)
    static = base + adapter + moments + buffers
    return Memory(
        base=base,
        adapter=adapter,
        optimizer=moments,
        activations=moment.activations,
        logits=moment.logits,
        workspace=moment.workspace + buffers,
        allocated=static + moment.bytes,
        reserved=static * loop.static_slack + moment.bytes * loop.slack + loop.context_bytes,
        reserved_low=static + moment.bytes * SLACK_LOW + loop.context_bytes + CONTEXT_LOW,
        reserved_high=static * STATIC_HIGH
        + moment.bytes * SLACK_HIGH
        + loop.context_bytes
        + CONTEXT_HIGH,
    )


def _trained_bytes(shape: Shape, work: TrainingSetup, trained: int) -> tuple[float, float]:
    """Return the bytes of trained weights with their gradients, and those of their moments."""
    loop = work.loop
    each = loop.trained_bytes + loop.gradient_bytes + loop.master_bytes
    adapter = trained * each
    moment = 2.03 if _eight_bit(work) else 8 if loop.moment_bytes is None else loop.moment_bytes
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


def _eight_bit(work: TrainingSetup) -> bool:
    return work.optimizer is not OptimizerKind.ADAMW


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """What is there at a moment of a step, beside what stays."""

    activations: float = 0.0
    logits: float = 0.0
    workspace: float = 0.0

    @property
    def bytes(self) -> float:
        """All of it."""
        return self.activations + self.logits + self.workspace


def _worst_moment(shape: Shape, work: TrainingSetup) -> _Moment:
    """Return the moment of the passes at which most is there.

    The head's is over before the backward pass of the last layer. In that, weights are unpacked, or
    inputs of adapters are cast and gradients meet: the three never add up.
    """
    rows, blocks = work.tokens * work.micro_batch, shape.text_blocks
    layers = [_layers_of(shape, block, work, at) for block, at in _block_rows(shape, work)]
    shared = _kept_weights(shape, work) + _shared_by_layers(shape, work)
    kept = shared + sum(one.kept for one in layers)
    unpacked = _unpacked_bytes(shape, work)
    if work.dora:
        adapted = (one for block in blocks for one in adapted_layers(block, work))
        unpacked = max([unpacked, *(dora_bytes(one, work) for one in adapted)])
    head = 0.0
    if work.loop.quantised_head and work.quant is not Quant.NONE:
        head = shape.vocabulary * shape.hidden * work.loop.dequantised_bytes
    moments = [
        _Moment(
            activations=kept + _last_norm(shape, work, rows),
            logits=logits_bytes(shape, work),
            workspace=head,
        )
    ]
    gathered = 0.0
    if work.sharded:  # a block that computes is there whole; in its forward pass, twice
        gathered = max(gathered_bytes(block, work) for block in shape.blocks)
        moments.append(_Moment(activations=kept, workspace=unpacked + 2 * gathered))
    for one in layers:
        # While an encoder works, what the decoder keeps is not there yet, or no longer.
        alone = shape.encoder_decoder and one is layers[0]
        live = one.live + (shared + one.kept if alone else kept)
        unpacking = live + one.unpacking
        moments.append(_Moment(activations=unpacking, workspace=unpacked + gathered))
        moments.append(_Moment(activations=live + one.casting, workspace=gathered))
    return max(moments, key=lambda one: one.bytes)


def _last_moment(shape: Shape, work: TrainingSetup, gradients: float) -> _Moment:
    """Return what is there in the backward pass of the first layers, with gradients of all."""
    block, rows = _block_rows(shape, work)[0]
    first = _layers_of(shape, block, work, rows)
    return _Moment(
        activations=_shared_by_layers(shape, work) + first.live + first.casting,
        workspace=gradients,
    )


@dataclass(frozen=True, kw_only=True)
class _Layers:
    """The bytes of the layers of one block, for all rows of a pass."""

    kept: float
    """From the forward pass of all of them."""
    live: float
    """Of one that is done again for its backward pass."""
    unpacking: float
    casting: float


def _layers_of(shape: Shape, block: Block, work: TrainingSetup, rows: int) -> _Layers:
    """Return what the layers of a block take, through which so many tokens pass."""
    brief, again = brief_bytes(shape, block, work), 0.0
    if shape.encoder_decoder and block is not shape.text_blocks[0]:
        # A decoder attends to all that the encoder read: keys, values, and what adapters read.
        each = BYTES[work.precision] * (2 * shape.hidden + block.keys)
        again = float(work.tokens * work.micro_batch * each)
    if work.checkpointing:
        layers = 2 if work.loop.checkpoints_on_host else block.count
        kept = float(layers * rows * shape.hidden * stream_bytes(shape, work))
        live = checkpointed_bytes(shape, block, work) * rows + again
    else:
        kept = block.count * (kept_bytes(shape, block, work) * rows + again)
        kept += _cast_adapters(block, work)
        live = 0.0
    return _Layers(
        kept=kept + block.count * kept_in_eight_bits(block, work) * rows,
        live=live,
        unpacking=brief.unpacking * rows,
        casting=brief.casting * rows,
    )


def _last_norm(shape: Shape, work: TrainingSetup, rows: int) -> float:
    """Return what the last norm keeps, and of a loss in chunks what it reads and gives back."""
    if traits_of(shape).layer_norm:
        return float(rows * shape.hidden * BYTES[work.precision])
    chunked = work.loop.head_chunk_bytes is not None and work.loss_tokens is None
    return float(rows * shape.hidden * (4 + (2 * BYTES[work.precision] if chunked else 0)))


def logits_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return what the logits take at the worst moment of the loss."""
    loop, each = work.loop, work.loop.head_bytes
    tokens = work.tokens if work.loss_tokens is None else work.loss_tokens
    rows = -(-work.micro_batch * tokens // loop.head_parts)
    if traits_of(shape).head_followed:  # the logits before and after what follows the head
        each += BYTES[work.precision]
    elif loop.head_chunk_bytes is not None:
        rows = min(rows, int(loop.head_chunk_bytes / (4 * shape.vocabulary)))
    return float(rows * shape.vocabulary * each)


def _unpacked_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return what weights take that exist in the compute type while they are computed with.

    A quantised linear layer unpacks itself, and again for its backward pass, and so does a head;
    not if its values are kept.
    The experts of a layer are unpacked all at once, as are unquantised ones with their adapter
    added: with checkpointing those of one layer are there, without it those of all. One that is
    adapted exists with its adapter and without, one tensor after the other.
    """
    quantised, size = work.quant is not Quant.NONE, work.loop.dequantised_bytes
    anew = quantised and not (work.loop.unpacked and work.quant.four_bit)
    matrices = [o.weights for b in shape.text_blocks for o in b.linears if anew]
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


def _block_rows(shape: Shape, work: TrainingSetup) -> list[tuple[Block, int]]:
    """Return each block with the tokens that pass it; a decoder has those of the answer."""
    blocks, rows = shape.text_blocks, work.tokens * work.micro_batch
    if not shape.encoder_decoder or work.loss_tokens is None:
        return [(block, rows) for block in blocks]
    written = work.loss_tokens * work.micro_batch
    return [(block, written if at else rows) for at, block in enumerate(blocks)]


def _shared_by_layers(shape: Shape, work: TrainingSetup) -> float:
    """Return what all layers are given once: what the distances of tokens add to the scores."""
    if not traits_of(shape).distances:
        return 0.0
    heads = shape.text_blocks[0].heads
    return float(heads * work.tokens**2 * BYTES[work.precision])


def _kept_weights(shape: Shape, work: TrainingSetup) -> float:
    """Return the bytes of changes of weights that are computed whole, and kept: LoHa's."""
    if work.variant != "loha":
        return 0.0
    return 4.0 * sum(
        block.count * sum(one.weights for one in adapted_layers(block, work))
        for block in shape.text_blocks
    )


def _cast_adapters(block: Block, work: TrainingSetup) -> float:
    """Return the bytes of a block's adapters in 16 bits, which autocast makes and keeps."""
    size = BYTES[work.precision]
    if not work.loop.autocast or work.loop.trained_bytes <= size or work.full:
        return 0.0
    each = work.r * sum(one.columns + one.rows for one in adapted_layers(block, work))
    return float(block.count * each * size)


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
