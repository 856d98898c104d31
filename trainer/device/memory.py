"""Estimates, before money is spent, whether a training fits a GPU, and about how long it takes.

Nothing heavy is imported and no weight is loaded: the model's `config.json` is enough. Sizes are
decimal bytes. The formula is written out in `docs/evaluation.md`, with its errors against published
measurements; it estimates the peak that torch allocates, to which the allocator's slack and the
CUDA context are added. The trainer itself measures the truth in its first seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.gpus import TrainingGpu
from trainer.device.shapes import Block, Experts, Linear, Shape, read_shape
from trainer.method_table import MethodKind, OptimizerKind, Quant

SLACK = 1.08  # reserved over allocated, the low end of what is seen in training (1.08 to 1.41)
CONTEXT_BYTES = 0.55e9  # CUDA context and workspaces: 0.36 to 0.65 GB are reported
SMALL_TENSOR = 4096  # elements under which bitsandbytes keeps moments in 32 bits
DORA_TIME = 1.26  # of a step over LoRA's, PEFT's own comparison on unquantised weights
HOURS_FACTOR = 3.0  # published runs of one kind on one card differ by that much
BYTES: Mapping[PrecisionChoice, int] = MappingProxyType(
    {PrecisionChoice.FP32: 4, PrecisionChoice.BF16: 2, PrecisionChoice.FP16: 2}
)


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """What is trained and how; `tokens` is the length of the sequences, prompt and answer."""

    tokens: int
    micro_batch: int = 1
    quant: Quant = Quant.NF4
    double_quant: bool = True
    r: int = 8
    targets: tuple[str, ...] | None = None  # None: every linear layer of the blocks
    dropout: bool = False
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    precision: PrecisionChoice = PrecisionChoice.FP16
    checkpointing: bool = True
    loss_tokens: int | None = None  # tokens per sequence that reach the head; None: all of them
    adapter_bytes: int = 4  # of one trained number; ours are always float32
    dora: bool = False
    bases: int | None = None  # per matrix, if the matrices are combinations of so many (NOLA)
    miss: bool = False
    new_tokens: bool = False  # PEFT puts their rows into a copy of the embedding in every pass
    saved: int = 0  # embedding and head, as far as they are trained whole


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
        adapted = (one for block in shape.text_blocks for one in _adapted(block, work))
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


def base_bytes(shape: Shape, work: TrainingSetup) -> float:
    """Return the bytes of the frozen weights as they lie in the GPU's memory.

    A 4-bit weight takes half a byte and its share of the scales: one float32 per 64 weights, or
    with double quantisation one byte per 64 and a float32 per 64 x 256 of those. An 8-bit weight
    takes a byte; its scales, one float32 per row, are left out. What is not quantised takes the
    bytes of the compute type: embeddings, head, norms, routers, and experts if they are not.
    """
    size = BYTES[work.precision]
    fp16 = work.precision is PrecisionChoice.FP16
    packed = _packed_bytes(work)
    total = 0.0
    for block in shape.blocks:
        for one in block.linears:
            each = packed
            if one.name in block.never_quantised:
                each = 4.0 if fp16 else float(size)
            total += block.count * one.weights * each
        for stack in block.experts:
            each = packed if quantises(stack, work) else float(size)
            total += block.count * stack.weights * each
    return total + (shape.embedding_parameters + shape.small_parameters) * size


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


def _packed_bytes(work: TrainingSetup) -> float:
    """Return the bytes of one weight of a layer that is quantised if any is."""
    if work.quant is Quant.NONE:
        return float(BYTES[work.precision])
    if work.quant is Quant.INT8:
        return 1.0
    return 0.5 + 1 / 64 + 4 / (64 * 256) if work.double_quant else 0.5 + 4 / 64


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
    twice = [one.weights for _, each in layers for one in each if _adapts(one.name, work)]
    experts = there + max(twice, default=0)
    return float(max(widest, experts) * BYTES[work.precision])


def _copied(experts: Experts, work: TrainingSetup) -> bool:
    """Tell whether a tensor of experts is computed with as a copy: unpacked, or adapted."""
    return quantises(experts, work) or _adapts(experts.name, work)


def adapter_parameters(shape: Shape, work: TrainingSetup) -> int:
    """Return how many numbers are trained: LoRA's, a length per row for DoRA, whole matrices.

    NOLA trains two times `bases` per layer instead.
    """
    if work.bases is not None:
        layers = sum(block.count * len(_adapted(block, work)) for block in shape.text_blocks)
        return layers * 2 * work.bases
    lengths = sum(
        block.count * sum(one.rows for one in _adapted(block, work)) for block in shape.text_blocks
    )
    if work.miss:  # one matrix [r, rows] a layer
        return sum(
            block.count * sum(work.r * one.rows for one in _adapted(block, work))
            for block in shape.text_blocks
        )
    saved = min(work.saved, 1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    return matrix_parameters(shape, work) + (lengths if work.dora else 0) + saved


def matrix_parameters(shape: Shape, work: TrainingSetup) -> int:
    """Return the elements of LoRA's matrices: r x (columns + rows) for every adapted layer.

    An adapted tensor of fused experts has as much for each expert.
    """
    return sum(
        block.count
        * work.r
        * (
            sum(one.columns + one.rows for one in _adapted(block, work))
            + sum(
                one.count * (one.columns + one.rows)
                for one in block.experts
                if _adapts(one.name, work)
            )
        )
        for block in shape.text_blocks
    )


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
    inputs = {one.columns: 0.0 for one in _adapted(block, work)}
    for one in _adapted(block, work):
        # Layers that read the same thing share it; with dropout each keeps its own copy and mask.
        shared = one.columns * size
        inputs[one.columns] = (
            inputs[one.columns] + shared + one.columns
            if work.dropout
            else max(inputs[one.columns], shared)
        )
    kept = 0 if work.quant is Quant.NONE else size * sum(one.columns for one in block.linears)
    # DoRA keeps what the base and what the matrices gave, each to be multiplied by the lengths.
    results = 2 * size * sum(one.rows for one in _adapted(block, work)) if work.dora else 0
    # What reaches an expert is a copy of its own for each of those that a token chooses.
    routed = size * sum(one.chosen * one.columns for one in block.experts)
    return norms + attention + feed + results + routed + max(sum(inputs.values()), kept)


def _brief_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what the backward pass of one layer holds of one token at its widest moment."""
    size = BYTES[work.precision]
    return size * (2 * block.feed_forward + 2 * shape.hidden)


def _adapted(block: Block, work: TrainingSetup) -> list[Linear]:
    return [
        one for one in block.linears if one.name not in block.unadapted and _adapts(one.name, work)
    ]


def _adapts(name: str, work: TrainingSetup) -> bool:
    return work.targets is None or name in work.targets


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


def step_seconds(
    config: Mapping[str, Any] | Shape, work: TrainingSetup, *, gpu: TrainingGpu, batch_size: int
) -> float:
    """Return about how long one optimizer step takes: work over what such a training reaches.

    Forward and backward through frozen weights cost 2 FLOP each per weight and token, recomputing
    another 2; the head costs the same for supervised tokens. Of experts, those count that a token
    chooses. Right within a factor of HOURS_FACTOR.
    """
    shape = read_shape(config)
    passes = (6 if work.checkpointing else 4) * (DORA_TIME if work.dora else 1.0)
    tokens = work.tokens * batch_size
    heads = batch_size * (work.tokens if work.loss_tokens is None else work.loss_tokens)
    head = shape.vocabulary * shape.hidden
    return passes * (shape.active_parameters * tokens + head * heads) / gpu.flops


def estimate_training(
    config: TrainerConfig,
    model: Mapping[str, Any] | Shape,
    *,
    gpu: TrainingGpu,
    lengths: Sequence[int] | None = None,
    loss_tokens: int | None = None,
) -> dict[str, Any]:
    """Return memory, micro-batch and time of a run as plain JSON, for `qft plan`.

    `lengths` are the token counts of the rows if they are known, else every row is taken to be
    `max_length` long; `loss_tokens` is the longest answer, else all tokens are taken to be learnt.
    """
    train, method, shape = config.train, config.method, read_shape(model)
    longest = max(lengths) if lengths else train.max_length
    usual = sum(lengths) / len(lengths) if lengths else train.max_length
    chosen = train.precision
    work = TrainingSetup(
        tokens=longest,
        quant=method.storage,
        double_quant=method.double_quant,
        r=method.r,
        targets=method.target_names,
        dropout=method.dropout > 0,
        optimizer=method.optimizer,
        precision=gpu.precision if chosen is PrecisionChoice.AUTO else chosen,
        checkpointing=train.gradient_checkpointing is not False,
        loss_tokens=loss_tokens if config.data.loss_on == "completion" else None,
        dora=method.kind.dora,
        bases=method.combined,
        miss=method.kind is MethodKind.MISS,
        new_tokens=bool(config.model.new_tokens),
        saved=method.saved_matrices,
    )
    fitting = largest_micro_batch(
        shape, work, memory_bytes=gpu.memory_bytes, batch_size=train.batch_size
    )
    wanted = fitting if train.micro_batch == "auto" else train.micro_batch
    peak = estimate(shape, replace(work, micro_batch=wanted or 1))
    usual_work = replace(work, tokens=max(1, round(usual)))
    seconds = step_seconds(shape, usual_work, gpu=gpu, batch_size=train.batch_size)
    steps = _steps(config, None if lengths is None else len(lengths))
    return {
        "gpu": gpu.name,
        "gpu_bytes": gpu.memory_bytes,
        "parameters": shape.parameters,
        "active_parameters": shape.active_in_all,
        "trained_parameters": adapter_parameters(shape, work),
        "tokens": longest,
        "micro_batch": wanted,
        "largest_micro_batch": fitting,
        "fits": fitting is not None and wanted is not None and wanted <= fitting,
        "memory_bytes": asdict(peak),
        "step_seconds": seconds,
        "steps": steps,
        "hours": None if steps is None else steps * seconds / 3600,
        "hours_factor": HOURS_FACTOR,
    }


def _steps(config: TrainerConfig, rows: int | None) -> int | None:
    train = config.train
    if train.steps is not None:
        return train.steps
    if rows is None:
        return None
    return max(1, round((train.epochs or 1.0) * rows / train.batch_size))
