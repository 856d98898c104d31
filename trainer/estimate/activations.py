"""Counts what the layers of a model keep of one token for the backward pass; pure arithmetic.

What is kept was counted in the code of transformers, PEFT and litgpt by torch's own hooks for saved
tensors; the formula is written out in `docs/memory-points.md`.
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
    """The norm is torch's own: it keeps its input as it is, and answers in float32 in autocast."""
    norm_inputs: int | None = None
    """Tensors that the norms of a layer read; None: each reads another one."""
    python_gelu: bool = False
    """GELU is written out in Python, and keeps three tensors more."""
    fused: bool = False
    """Queries, keys and values are views of one tensor."""
    head_norms: bool = False
    """Queries and keys have norms of their own."""
    eager_bytes: float = 0.0
    """Attention is never a kernel of torch's: what it keeps of a score."""
    broadcast_keys: bool = False
    """Keys and values of the one head they have are never copied."""
    head_followed: bool = False
    """Something follows the head, such as a soft cap: logits are made all at once."""
    distances: bool = False
    """Attention is given what the distance of two tokens adds, of each head; the norm multiplies
    its input as it is, too."""
    dropouts: int = 0
    """Masks of dropout that a layer keeps of its hidden states, whatever the adapter has."""


TRAITS: Mapping[str, Traits] = MappingProxyType(
    {
        "phi": Traits(layer_norm=True, norm_inputs=1, python_gelu=True),
        "gptj": Traits(layer_norm=True, norm_inputs=1, python_gelu=True),
        "gpt2": Traits(layer_norm=True, norm_inputs=2, python_gelu=True, dropouts=2),
        "opt": Traits(layer_norm=True, dropouts=2),
        "falcon": Traits(layer_norm=True, norm_inputs=1, broadcast_keys=True),
        "gpt_neox": Traits(layer_norm=True, norm_inputs=1),
        **dict.fromkeys(("cohere", "cohere2"), Traits(norm_inputs=1, head_followed=True)),
        "granite": Traits(head_followed=True),
        **dict.fromkeys(("bloom", "starcoder2", "stablelm"), Traits(layer_norm=True)),
        **dict.fromkeys(("t5", "mt5", "umt5"), Traits(distances=True, dropouts=2)),
        "phi3": Traits(fused=True),
        "gemma2": Traits(eager_bytes=8.0, head_followed=True),
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


def stream_bytes(shape: Shape, work: TrainingSetup) -> int:
    """Return the bytes of a number of the hidden states.

    An embedding in float32 makes all of them float32, and so do autocast of torch's own norm and
    DoRA's lengths: a quantised layer answers in the type of what it reads.
    """
    own_norm = traits_of(shape).layer_norm and not work.loop.fused_norms
    scaled = work.dora and work.quant is not Quant.NONE
    widened = work.loop.autocast and (own_norm or scaled)
    return 4 if work.loop.upcast or widened else BYTES[work.precision]


def is_padded(work: TrainingSetup) -> bool:
    """Tell whether attention is given a mask: rows of one pass differ in length."""
    return work.loop.masks and work.micro_batch > 1


def kept_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what one layer keeps of one token for its backward pass."""
    traits, size = traits_of(shape), stream_bytes(shape, work)
    return (
        _norm_bytes(shape, block, work, traits)
        + _attention_bytes(block, work, traits)
        + _feed_bytes(shape, block, work, traits)
        + _input_bytes(shape, block, work, traits)
        + MASK_BYTES * shape.hidden * traits.dropouts
        # What reaches an expert is a copy of its own for each of those that a token chooses.
        + size * sum(one.chosen * one.columns for one in block.experts)
    )


def _norm_bytes(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> float:
    size, count = stream_bytes(shape, work), block.norms
    each = 4
    if traits.layer_norm:
        count = count if traits.norm_inputs is None else traits.norm_inputs
        each = size
    elif work.loop.fused_norms:
        each = size
    kept = count * shape.hidden * (each + (size if traits.distances else 0))
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
    eager = loop.eager or traits.eager_bytes > 0
    masked = is_padded(work) and not traits.broadcast_keys
    spread = max(queries, keys) if loop.repeated_keys or masked or eager else keys
    viewed = loop.fused_views or (traits.fused and loop.cast_quantised)
    if viewed and queries == keys:
        kept = size * (2 * queries + keys + queries + 2 * keys)
    else:
        kept = size * (2 * queries + 2 * spread)
    if eager:
        return kept + block.heads * work.tokens * max(traits.eager_bytes, loop.eager_kept)
    if traits.distances:
        kept += block.heads * work.tokens * size
    elif is_padded(work):
        kept += work.tokens * size
    return kept + LSE_BYTES * block.heads


def _feed_bytes(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> float:
    """Return what the non-linearity of the feed-forward part keeps."""
    stream, width = stream_bytes(shape, work), block.feed_forward
    if traits.distances and block.gated:
        # GELU in Python, whose power autocast makes float32: four such tensors and two as they are.
        wide = 4 if work.loop.autocast else stream
        return width * (4 * wide + 2 * stream + MASK_BYTES)
    if traits.distances:
        return width * (stream + MASK_BYTES)
    if block.gated:
        return width * stream * work.loop.gated_kept
    return width * stream * (4 if traits.python_gelu and work.loop.slow_activations else 1)


def _input_bytes(shape: Shape, block: Block, work: TrainingSetup, traits: Traits) -> float:
    """Return what linear layers keep of what they read, for the adapters and for themselves."""
    stream, copied = stream_bytes(shape, work), _copy_bytes(shape, work)
    adapted = [] if work.full else adapted_layers(block, work)
    kept = sum(_own_bytes(one, work, stream, copied) for one in _readers(adapted, block, work))
    if work.dora:  # what the base and what the matrices gave, each to be multiplied by lengths
        kept += (stream + BYTES[work.precision]) * sum(one.rows for one in adapted)
    if work.loop.padded_adapter:
        rows = sum(one.rows for one in adapted if role_of(one, block) is Role.ATTENTION_IN)
        kept += rows * stream if rows < block.queries + 2 * block.keys else 0
    shares = not (work.miss or work.variant == "vera" or work.dropout or copied)
    reading = block.linears if work.full else adapted if shares else []
    return kept + _shared_bytes(
        shape, block, work, traits, {role_of(one, block) for one in reading}
    )


def _readers(adapted: list[Linear], block: Block, work: TrainingSetup) -> list[Linear]:
    """Return the adapted layers, of which one adapter may read for queries, keys and values."""
    if not work.loop.fused_views:
        return adapted
    inside = [one for one in adapted if role_of(one, block) is Role.ATTENTION_IN]
    return [one for one in adapted if one not in inside[1:]]


def _own_bytes(one: Linear, work: TrainingSetup, stream: int, copied: int) -> float:
    """Return what one adapter keeps for itself: its input's copy, mask, and what A gave."""
    if work.miss:
        return 0.0
    if work.variant == "vera":  # scales what its frozen matrices gave
        return 4.0 * one.rows
    kept = work.r * (copied or stream)
    if work.dropout:
        return float(kept + one.columns * ((copied or stream) + MASK_BYTES))
    return float(kept + one.columns * copied)


def _shared_bytes(
    shape: Shape, block: Block, work: TrainingSetup, traits: Traits, reading: set[Role]
) -> float:
    """Return the inputs that are kept once for all that read them: `reading`, and the base."""
    widths = {
        Role.ATTENTION_IN: shape.hidden, Role.FEED_IN: shape.hidden,
        Role.ATTENTION_OUT: block.queries, Role.FEED_OUT: block.feed_forward,
    }  # fmt: skip
    stream, loop = stream_bytes(shape, work), work.loop
    each = dict.fromkeys(reading, float(stream))
    if work.quant is not Quant.NONE and loop.frozen_inputs:
        for role in {role_of(one, block) for one in block.linears}:
            each[role] = max(each.get(role, 0.0), loop.frozen_inputs)
    if not loop.eager and each.get(Role.ATTENTION_OUT, 0.0) <= stream:
        each.pop(Role.ATTENTION_OUT, None)  # attention keeps its output already
    if traits.norm_inputs == 1 and Role.ATTENTION_IN in each:
        each.pop(Role.FEED_IN, None)  # both read the output of one norm
    return sum(widths[role] * size for role, size in each.items())


def _copy_bytes(shape: Shape, work: TrainingSetup) -> int:
    """Return the bytes of a number of an adapter's own copy of its input; 0 if it has none."""
    loop, size = work.loop, BYTES[work.precision]
    if work.precision is PrecisionChoice.FP32 or loop.trained_bytes < 4:
        return 0
    if loop.autocast and stream_bytes(shape, work) > size:
        return size  # which autocast makes of float32
    if work.quant is not Quant.NONE and not loop.cast_quantised:
        return 0 if loop.autocast or loop.upcast else 4
    return {"16": size, "32": 4, "": 0}[loop.cast_inputs]


@dataclass(frozen=True, kw_only=True)
class Brief:
    """What a layer holds of one token beside what it keeps, at each of its widest moments."""

    unpacking: float
    """While a weight is unpacked, which comes on top."""
    casting: float
    """While an adapter's input is cast, or gradients meet: no weight is unpacked then."""


def brief_bytes(shape: Shape, block: Block, work: TrainingSetup) -> Brief:
    """Return what the widest moments of a layer hold, which are where its feed-forward part ends.

    In the forward pass its inner values are there, and for an adapter once more in float32; in the
    backward pass the gradients for the base and the adapter, and their sum. Attention that computes
    all scores has as many of their gradients.
    """
    stream, size, width = stream_bytes(shape, work), BYTES[work.precision], block.feed_forward
    adapted = any(role_of(one, block) is Role.FEED_OUT for one in adapted_layers(block, work))
    copied = _copy_bytes(shape, work) if adapted else 0
    hidden = 5 * shape.hidden * size
    if stream > size:
        inner = stream * (width + shape.hidden) + hidden
        gradients = (3 if adapted else 2) * stream * width + stream * shape.hidden - copied * width
        return Brief(unpacking=inner, casting=max(gradients, _score_bytes(shape, block, work)))
    inner = size * width + hidden
    gradients = size * (2 * width + 2 * shape.hidden)
    casting = max(gradients, inner + (4 * width if copied else 0))
    return Brief(unpacking=inner, casting=max(casting, _score_bytes(shape, block, work)))


def _score_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what the backward pass of attention holds, if it computes all scores."""
    if not (work.loop.eager or traits_of(shape).eager_bytes):
        return 0.0
    return block.heads * work.tokens * work.loop.eager_brief


def checkpointed_bytes(shape: Shape, block: Block, work: TrainingSetup) -> float:
    """Return what is there of one token while a checkpointed layer is done again.

    A norm of torch's own keeps the checkpoint itself, which is counted already.
    """
    kept = kept_bytes(shape, block, work)
    if traits_of(shape).layer_norm:
        kept -= shape.hidden * stream_bytes(shape, work)
    return kept


def kept_in_eight_bits(block: Block, work: TrainingSetup) -> float:
    """Return what the layers of bitsandbytes in 8 bits keep of one token, checkpointed or not.

    They keep what they read outside of what a checkpoint leaves away.
    """
    if work.quant is not Quant.INT8:
        return 0.0
    widths = {role_of(one, block): one.columns for one in block.linears}
    return float(BYTES[work.precision] * sum(widths.values()))
