"""Decoders most of whose layers attend by a state of fixed size: Qwen3-Next, Qwen3.5 and 3.6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.device.architectures.decoder import (
    Attention,
    decoder,
    gated,
    heads_of,
    split_attention,
)
from trainer.device.architectures.dense import Family
from trainer.device.architectures.experts import Mixture, sparse_feed, without_adapters
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Linear, Shape, UnknownShapeError

FULL, STATE = "full_attention", "linear_attention"
MIXTURE = Mixture(
    attention=Family(), width="moe_intermediate_size",
    shared_width="shared_expert_intermediate_size", shared_gate=True,
)  # fmt: skip
QWEN_3_5 = {
    "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip
QWEN_3_5_MOE = {
    "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "moe_intermediate_size": 512, "num_experts": 256,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5_text": QWEN_3_5,
    "qwen3_5_moe_text": QWEN_3_5_MOE,
}


def read_hybrid(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of a model of Qwen3-Next's kind; raises UnknownShapeError."""
    sizes = Sizes(kind, config, DEFAULTS.get(kind))
    hidden = sizes.number("hidden_size")
    kinds = _kinds(sizes)
    full, state = _full(sizes), _state(sizes)
    if kind == "qwen3_5_text":
        feed = gated(hidden, sizes.number("intermediate_size"))
    else:
        every = sizes.number("decoder_sparse_step", default=1) == 1
        if not every or sizes.numbers("mlp_only_layers"):
            raise UnknownShapeError("its config.json has layers without experts")
        feed = sparse_feed(sizes, MIXTURE)
    shape = decoder(sizes, lambda at: (full if kinds[at] == FULL else state, feed), tied=False)
    return without_adapters(shape) if kind == "qwen3_next" else shape


def _kinds(sizes: Sizes) -> tuple[str, ...]:
    """Return what attends in each layer: as the config lists it, or a full one every so often."""
    listed = sizes.texts("layer_types")
    if listed is None:
        every = sizes.number("full_attention_interval", default=4)
        return tuple(STATE if (at + 1) % every else FULL for at in range(sizes.layers))
    if len(listed) != sizes.layers or not set(listed) <= {FULL, STATE}:
        raise UnknownShapeError("its config.json has other `layer_types` than there are layers")
    return listed


def _full(sizes: Sizes) -> Attention:
    """Return attention whose queries' matrix also makes a gate for the output."""
    bias = sizes.flag("attention_bias")
    found = split_attention(sizes, bias=bias, out_bias=bias, head=256)
    asking = replace(found.linears[0], rows=2 * found.queries)
    norms = 2 * heads_of(sizes, head=256)[2]
    return replace(found, linears=(asking, *found.linears[1:]), others=norms)


def _state(sizes: Sizes) -> Attention:
    """Return a gated delta net, with its convolution over four tokens."""
    hidden = sizes.number("hidden_size")
    key_heads = sizes.number("linear_num_key_heads", default=16)
    value_heads = sizes.number("linear_num_value_heads", default=32)
    keys = key_heads * sizes.number("linear_key_head_dim", default=128)
    value = sizes.number("linear_value_head_dim", default=128)
    values = value_heads * value
    mixed = 2 * keys + values
    if sizes.kind == "qwen3_next":
        into: tuple[Linear, ...] = (
            Linear(name="in_proj_qkvz", columns=hidden, rows=mixed + values),
            Linear(name="in_proj_ba", columns=hidden, rows=2 * value_heads),
        )
    else:
        into = (
            Linear(name="in_proj_qkv", columns=hidden, rows=mixed),
            Linear(name="in_proj_z", columns=hidden, rows=values),
            Linear(name="in_proj_b", columns=hidden, rows=value_heads),
            Linear(name="in_proj_a", columns=hidden, rows=value_heads),
        )
    convolution = mixed * sizes.number("linear_conv_kernel_dim", default=4)
    return Attention(
        linears=(*into, Linear(name="out_proj", columns=values, rows=hidden)),
        queries=values,
        keys=values,
        others=convolution + 2 * value_heads + value,
    )
