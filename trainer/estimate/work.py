"""Counts what one optimizer step computes, moves and launches; pure arithmetic, no clock.

Three things cost time on a card: multiplications, bytes to and from its memory, and the start of
each kernel, which the processor beside it gives out one by one. Each is counted of one micro-pass
(forward, the recomputing of checkpointed layers, backward) from the same setup as memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.config import PrecisionChoice
from trainer.device.shapes import Block, Linear, Shape
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.estimate.weights import (
    adapted_layers,
    adapter_parameters,
    adapts,
    matrix_parameters,
    quantises,
)
from trainer.method_table import OptimizerKind, Quant

LAYER_KERNELS = 40
"""Started by one forward pass of an unadapted layer of today's decoders: norms, rotation,
attention, activation, sums, and the products of its linear layers."""
ADAPTER_KERNELS = 8
"""More for each adapted linear layer: casts, dropout, two products, scale, sum."""
UNPACKING_KERNELS = 2
"""More for each quantised linear layer; with double quantisation its scales take as many again."""
BACKWARD = 2
"""A backward pass starts about two kernels, and moves about two bytes, for each one forward."""
ATTENTION_BACKWARD = 2.5
"""Fused attention has two products forward, and five backward, since it recomputes one."""
OPTIMIZER_KERNELS = 20
"""For each trained matrix in each step: AdamW, clipping and zeroing of gradients, one by one."""
TRANSFORM_FLOPS = 2 * 128 * 3
"""Of one element of a matrix: up to three products with matrices of 128."""
TRANSFORM_BYTES, TRANSFORM_KERNELS = 320, 40
"""Its signs are hashed in 64-bit integers, some forty operations one by one."""
HIDDEN_READS = 30
"""How often a forward pass of a layer reads or writes a number of its hidden width, norms included,
whose inputs are in float32 (two numbers of 16 bits)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done; `flops` are of matrix products, `unpacked` counts 4-bit or 8-bit weights."""

    flops: float = 0.0
    float32_flops: float = 0.0
    """Products in float32, which tensor cores do not speed up: T5's `wo` in a float16 model."""
    bytes: float = 0.0
    unpacked: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Add up what is done one after the other."""
        return Work(
            flops=self.flops + other.flops,
            float32_flops=self.float32_flops + other.float32_flops,
            bytes=self.bytes + other.bytes,
            unpacked=self.unpacked + other.unpacked,
            launches=self.launches + other.launches,
        )

    def __mul__(self, factor: float) -> Work:
        """Return what is done if it is done `factor` times."""
        return Work(
            flops=self.flops * factor,
            float32_flops=self.float32_flops * factor,
            bytes=self.bytes * factor,
            unpacked=self.unpacked * factor,
            launches=self.launches * factor,
        )


def pass_work(shape: Shape, work: TrainingSetup) -> Work:
    """Return what one micro-pass does: `work.micro_batch` rows of `work.tokens` tokens each.

    A frozen weight costs 2 FLOP a token forward and 2 backward, and 2 more where its layer is
    recomputed; a trained one 2 more for its own gradient.
    """
    total = _head_work(shape, work)
    for at, block in enumerate(shape.text_blocks):
        total += _layer_work(block, shape, _setup_in(at, shape, work)) * block.count
    return total


def _setup_in(at: int, shape: Shape, work: TrainingSetup) -> TrainingSetup:
    """Return the setup of one stack: an encoder reads the prompt, a decoder the answer."""
    if not shape.encoder_decoder or work.loss_tokens is None:
        return work
    target = min(work.loss_tokens, work.tokens)
    return replace(work, tokens=target if at else max(1, work.tokens - target))


def update_work(shape: Shape, work: TrainingSetup) -> Work:
    """Return what is done once in a step, whatever the number of micro-passes.

    The optimizer updates what is trained; NOLA makes its matrices of coefficients, and their
    gradients of those of the matrices, by a fast transform (`trainer/adapters/nola.py`).
    """
    trained = adapter_parameters(shape, work)
    matrices = 2 * sum(
        block.count * len(adapted_layers(block, work)) for block in shape.text_blocks
    )
    moved = 28 if work.optimizer is OptimizerKind.ADAMW else 18
    update = Work(bytes=trained * moved, launches=matrices * OPTIMIZER_KERNELS)
    if work.bases is None:
        return update
    elements = matrix_parameters(shape, work)
    transform = Work(
        float32_flops=elements * TRANSFORM_FLOPS,
        bytes=elements * TRANSFORM_BYTES,
        launches=matrices * TRANSFORM_KERNELS,
    )
    return update + transform * 2


def generation_work(shape: Shape, work: TrainingSetup, *, rows: int) -> Work:
    """Return what it takes to generate one token for each of `rows` rows at once: all weights."""
    linears = shape.active_parameters
    head = shape.vocabulary * shape.hidden
    size = BYTES[work.precision]
    unpacked = float(linears) if work.quant is not Quant.NONE else 0.0
    launches = sum(
        block.count * (LAYER_KERNELS + _linear_kernels(block, work)) for block in shape.text_blocks
    )
    return Work(
        flops=2.0 * rows * (linears + head),
        bytes=float((linears + head) * size),
        unpacked=unpacked,
        launches=launches,
    )


def prompt_work(shape: Shape, work: TrainingSetup) -> Work:
    """Return what reading the prompts of `work.micro_batch` rows takes: a forward pass."""
    layers = sum(
        (_forward(block, shape, work) * block.count for block in shape.text_blocks), Work()
    )
    rows = work.micro_batch
    return layers + Work(
        flops=2.0 * rows * shape.vocabulary * shape.hidden,
        bytes=shape.vocabulary * shape.hidden * BYTES[work.precision],
    )


def _layer_work(block: Block, shape: Shape, work: TrainingSetup) -> Work:
    """Return what a micro-pass does in one layer, with what recomputes it."""
    forward = _forward(block, shape, work)
    tokens = work.tokens * work.micro_batch
    adapters = sum(_adapter_weights(one, work) for one in adapted_layers(block, work))
    backward = Work(
        flops=2.0 * tokens * (_fast_weights(block, work) + 2.0 * adapters)
        + ATTENTION_BACKWARD * _attention_flops(block, work),
        float32_flops=forward.float32_flops,
        bytes=forward.bytes * BACKWARD,
        unpacked=forward.unpacked,
        launches=forward.launches * BACKWARD,
    )
    return forward * (2 if work.checkpointing else 1) + backward


def _forward(block: Block, shape: Shape, work: TrainingSetup) -> Work:
    """Return what one forward pass does in one layer."""
    size = BYTES[work.precision]
    tokens = work.tokens * work.micro_batch
    adapted = adapted_layers(block, work)
    adapters = sum(_adapter_weights(one, work) for one in adapted)
    wide = block.feed_forward * (3 if block.gated else 2) + 2 * (block.queries + 2 * block.keys)
    # An adapted layer reads its input again in float32, and adds to what the base gives.
    beside = sum((4 + size) * one.columns + 3 * size * one.rows for one in adapted)
    moved: float = tokens * (size * (HIDDEN_READS * shape.hidden + wide) + beside)
    flops = 2.0 * tokens * (_fast_weights(block, work) + adapters) + _attention_flops(block, work)
    slow = _active_weights(block) - _fast_weights(block, work)
    if work.dora:  # the norm of every row of the weight with its adapter, in each pass
        moved += sum(12.0 * one.weights for one in adapted)
        flops += sum(2.0 * one.weights * work.r for one in adapted)
    unpacked = float(_quantised_weights(block, work))
    if work.dora and work.quant is not Quant.NONE:
        unpacked += sum(one.weights for one in adapted)
    return Work(
        flops=flops,
        float32_flops=2.0 * tokens * slow,
        bytes=moved + size * _active_weights(block),
        unpacked=unpacked,
        launches=LAYER_KERNELS + _linear_kernels(block, work),
    )


def _head_work(shape: Shape, work: TrainingSetup) -> Work:
    """Return what the head and the loss do: only for the tokens that the loss is of."""
    size = BYTES[work.precision]
    each = work.tokens if work.loss_tokens is None else min(work.loss_tokens, work.tokens)
    tokens = each * work.micro_batch
    weights = shape.vocabulary * shape.hidden
    return Work(
        flops=4.0 * tokens * weights,
        # Logits in the compute type, their float32 copy and its gradient, each written and read.
        bytes=2.0 * size * weights + 2.0 * tokens * shape.vocabulary * (size + 4 + 4),
        launches=30,
    )


def _attention_flops(block: Block, work: TrainingSetup) -> float:
    """Return the FLOP of both products of attention; a causal mask leaves half of them."""
    return 2.0 * work.tokens * work.tokens * work.micro_batch * block.queries


def _active_weights(block: Block) -> int:
    return sum(one.weights for one in block.linears) + sum(
        one.active_weights for one in block.experts
    )


def _fast_weights(block: Block, work: TrainingSetup) -> int:
    """Return the weights that tensor cores multiply: in float16 without what is kept in float32."""
    if work.precision is not PrecisionChoice.FP16:
        return _active_weights(block)
    return _active_weights(block) - sum(
        one.weights for one in block.linears if one.name in block.never_quantised
    )


def _quantised_weights(block: Block, work: TrainingSetup) -> int:
    """Return how many weights one pass unpacks: those of all experts, since they lie in one."""
    if work.quant is Quant.NONE:
        return 0
    linears = (one.weights for one in block.linears if one.name not in block.never_quantised)
    return sum(linears) + sum(one.weights for one in block.experts if quantises(one, work))


def _adapter_weights(one: Linear, work: TrainingSetup) -> int:
    return work.r * (one.columns + one.rows)


def _linear_kernels(block: Block, work: TrainingSetup) -> int:
    adapted = len(adapted_layers(block, work))
    adapted += sum(adapts(one.name, work) for one in block.experts)
    kernels = adapted * ADAPTER_KERNELS * (2 if work.dora else 1)
    if work.quant is not Quant.NONE:
        each = UNPACKING_KERNELS * (2 if work.double_quant and work.quant.four_bit else 1)
        kernels += len(block.linears) * each
    return kernels
