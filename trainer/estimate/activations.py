"""Counts what the layers of a model keep of one token for the backward pass; pure arithmetic.

What is kept was counted in the code of transformers, PEFT and litgpt by torch's own hooks for saved
tensors; the formula is written out in `docs/memory.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from trainer.config import PrecisionChoice
from trainer.device.shapes import Block, Linear, Shape
from trainer.estimate.setup import BYTES, TrainingSetup
from trainer.estimate.weights import adapted_layers
from trainer.method_table import Quant

MASK_BYTES = 1
LSE_BYTES = 4  # of the softmax's denominator, which attention keeps for each head


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the code of an architecture keeps otherwise than LLaMA's does."""

    layer_norm: bool = False
    """The norm is torch's own, which keeps its input as it is, not a copy in float32."""
    norm_inputs: int | None = None
    """Tensors that the norms of a layer read; None: each reads another one."""
    python_gelu: bool = False
    """GELU is written out in Python, and keeps three tensors more."""
    fused: bool = False
    """Queries, keys and values are views of one tensor."""
    head_norms: bool = False
    """Queries and keys have norms of their own."""


PARALLEL = Traits(layer_norm=True, norm_inputs=1)
SEQUENTIAL = Traits(layer_norm=True)
TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "phi": Traits(layer_norm=True, norm_inputs=1, python_gelu=True),
        "gptj": Traits(layer_norm=True, norm_inputs=1, python_gelu=True),
        "gpt2": Traits(layer_norm=True, norm_inputs=2, python_gelu=True),
        "falcon": PARALLEL,
        "gpt_neox": PARALLEL,
        "cohere": PARALLEL,
        "cohere2": PARALLEL,
        "opt": SEQUENTIAL,
        "bloom": SEQUENTIAL,
        "starcoder2": SEQUENTIAL,
        "stablelm": SEQUENTIAL,
        "phi3": Traits(fused=True),
        **dict.fromkeys(
            ("qwen3", "qwen3_moe", "qwen3_vl_text", "gemma3_text", "olmo2", "olmo3", "exaone4"),
            Traits(head_norms=True),
        ),
    }
)
LLAMA = Traits()


class Role(Enum):
    """What a linear layer reads: layers with one role in a block read one tensor."""

    ATTENTION_IN = "attention in"
    ATTENTION_OUT = "attention out"
    FEED_IN = "feed in"
    FEED_OUT = "feed out"


ATTENTION_OUT = frozenset({"o_proj", "dense", "out_proj", "o", "c_proj"})
FEED_IN = frozenset(
    {
        "gate_proj", "up_proj", "gate_up_proj", "fc1", "w1", "w2", "wi", "wi_0", "wi_1",
        "dense_h_to_4h", "c_fc", "fc_in",
    }
)  # fmt: skip


def role_of(one: Linear, block: Block) -> Role:
    """Return what a linear layer of a block reads, by its name and its width."""
    if one.name in FEED_IN:
        return Role.FEED_IN
    if one.columns == block.feed_forward or one.name in {"down_proj", "fc2", "wo", "fc_out"}:
        return Role.FEED_OUT
    return Role.ATTENTION_OUT if one.name in ATTENTION_OUT else Role.ATTENTION_IN


def traits_of(shape: Shape) -> Traits:
    """Return what the code of a model's architecture keeps."""
    return TRAITS.get(shape.kind, LLAMA)


def stream_bytes(work: TrainingSetup) -> int:
    """Return the bytes of a number of the hidden states.

    An embedding in float32 makes all of them float32: a quantised layer answers in the type of what
    it reads.
    """
    return 4 if work.loop.upcast else BYTES[work.precision]


def kept_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what one layer keeps of one token for its backward pass."""
    traits, size = traits_of(shape), stream_bytes(work)
    return (
        _norm_bytes(shape, block, work, traits)
        + _attention_bytes(block, work, traits)
        + size * block.feed_forward * _feed_tensors(shape, block, work, traits)
        + _input_bytes(shape, block, work, traits)
        # What reaches an expert is a copy of its own for each of those that a token chooses.
        + size * sum(one.chosen * one.columns for one in block.experts)
    )


def _norm_bytes(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> float:
    size, count = stream_bytes(work), block.norms
    if traits.layer_norm:
        count = count if traits.norm_inputs is None else traits.norm_inputs
        each = 4 if work.loop.autocast else size
    else:
        each = size if work.loop.fused_norms else 4
    kept = count * shape.hidden * each
    if traits.head_norms:
        kept += 4 * (block.queries + block.keys)
    if work.full:  # the normed values, to be multiplied by the gradient of the norm's weights
        kept += block.norms * shape.hidden * size
    return kept


def _attention_bytes(block: Block, work: TrainingSetup, traits: Traits) -> float:
    """Return what attention keeps: queries, keys, values, and its output or all scores."""
    size, loop = BYTES[work.precision], work.loop
    if loop.upcast and not loop.autocast:
        size = 4
    queries, keys = block.queries, block.keys
    spread = max(queries, keys) if loop.repeated_keys else keys
    if (traits.fused or loop.fused_views) and queries == keys:
        kept = size * (2 * queries + keys + queries + 2 * keys)
    else:
        kept = size * (2 * queries + 2 * spread)
    if loop.eager:
        return kept + block.heads * work.tokens * loop.eager_kept
    return kept + LSE_BYTES * block.heads


def _feed_tensors(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> int:
    """Return how many tensors of the feed-forward width the non-linearity keeps."""
    if block.gated:
        return 6 if shape.kind in {"t5", "mt5", "umt5"} else work.loop.gated_kept
    return 4 if traits.python_gelu and work.loop.slow_activations else 1


def _input_bytes(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> float:
    """Return what linear layers keep of what they read, for the adapters and for themselves."""
    loop, stream = work.loop, stream_bytes(work)
    quantised = work.quant is not Quant.NONE
    widths = {
        Role.ATTENTION_IN: shape.hidden, Role.FEED_IN: shape.hidden,
        Role.ATTENTION_OUT: block.queries, Role.FEED_OUT: block.feed_forward,
    }  # fmt: skip
    shared: dict[Role, float] = {}  # tensors that are there once for all that read them
    if loop.frozen_inputs and quantised:
        for role in {role_of(one, block) for one in block.linears}:
            shared[role] = widths[role] * loop.frozen_inputs
    kept, copied, padded = 0.0, _copy_bytes(work), 0
    reads = not work.miss and work.variant != "vera"  # whether an adapter keeps what it reads
    adapted = block.linears if work.full else adapted_layers(block, work)
    seen: set[Role] = set()
    for one in adapted:
        role = role_of(one, block)
        if role is Role.ATTENTION_IN:
            padded += one.rows
        if loop.fused_views and role is Role.ATTENTION_IN and role in seen:
            continue  # one adapter reads for queries, keys and values
        seen.add(role)
        if work.full:
            shared[role] = max(shared.get(role, 0.0), widths[role] * stream)
            continue
        if not reads:
            kept += 0 if work.miss else 4 * one.rows  # VeRA scales what its matrices gave
            continue
        kept += work.r * (copied or stream)
        if work.dropout:
            kept += one.columns * ((copied or stream) + MASK_BYTES)
        elif copied:
            kept += one.columns * copied
        else:
            shared[role] = max(shared.get(role, 0.0), widths[role] * stream)
    if not loop.eager and shared.get(Role.ATTENTION_OUT, 0.0) <= block.queries * stream:
        shared.pop(Role.ATTENTION_OUT, None)  # attention keeps its output already
    if traits.norm_inputs == 1 and Role.ATTENTION_IN in shared:
        shared.pop(Role.FEED_IN, None)  # both read the output of one norm
    if loop.padded_adapter and 0 < padded < block.queries + 2 * block.keys:
        kept += padded * stream
    if work.dora:  # what the base and what the matrices gave, each to be multiplied by lengths
        kept += 2 * stream * sum(one.rows for one in adapted)
    return kept + sum(shared.values())


def _copy_bytes(work: TrainingSetup) -> int:
    """Return the bytes of a number of an adapter's own copy of its input; 0 if it has none."""
    loop = work.loop
    if work.precision is PrecisionChoice.FP32 or loop.trained_bytes < 4:
        return 0
    if work.quant is not Quant.NONE:  # PEFT leaves the cast to autocast, if that is on
        if not loop.autocast:
            return 0 if loop.upcast else 4
        return BYTES[work.precision] if loop.upcast else 0
    return {"16": BYTES[work.precision], "32": 4, "": 0}[loop.cast_inputs]


def brief_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what the backward pass of one layer holds of one token at its widest moment."""
    size = stream_bytes(work)
    feed = size * (2 * block.feed_forward + 2 * shape.hidden)
    if not work.loop.eager:
        return feed
    return max(feed, block.heads * work.tokens * work.loop.eager_brief)
