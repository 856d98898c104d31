"""Decoders with convolutions or state spaces beside attention: LFM2, Granite 4 and Falcon-H1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.device.architectures.decoder import (
    Attention,
    FeedForward,
    decoder,
    gated,
    heads_of,
    split_attention,
)
from trainer.device.architectures.dense import Family
from trainer.device.architectures.experts import Mixture, sparse_feed
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Linear, Shape, UnknownShapeError

ATTENTION = frozenset({"attention", "full_attention"})
STATE = frozenset({"mamba", "linear_attention"})
GRANITE = Mixture(attention=Family(), shared_width="shared_intermediate_size", shared="fused")
GRANITE_4 = {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 1024}


def read_lfm2(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of LFM2, most of whose layers are short convolutions with gates."""
    tied = config.get("tie_embedding", config.get("tie_word_embeddings"))
    sizes = Sizes(kind, {**config, "tie_word_embeddings": tied})
    hidden, bias = sizes.number("hidden_size"), sizes.flag("conv_bias")
    kinds = _listed(sizes, ATTENTION | {"conv"}) or _lfm2_kinds(sizes)
    attention = split_attention(sizes, out="out_proj")
    attention = replace(attention, others=2 * heads_of(sizes)[2])
    taps = sizes.number("conv_L_cache", default=3)
    convolution = Attention(
        linears=(
            Linear(name="in_proj", columns=hidden, rows=3 * hidden, bias=bias),
            Linear(name="out_proj", columns=hidden, rows=hidden, bias=bias),
        ),
        queries=hidden,
        keys=hidden,
        others=hidden * (taps + bias),
    )
    width = _lfm2_width(sizes, config)
    feed = FeedForward(
        linears=(
            Linear(name="w1", columns=hidden, rows=width),
            Linear(name="w3", columns=hidden, rows=width),
            Linear(name="w2", columns=width, rows=hidden),
        ),
        width=width,
    )
    return decoder(
        sizes, lambda at: (attention if kinds[at] in ATTENTION else convolution, feed), tied=True
    )


def read_granite_hybrid(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Granite 4: Mamba 2 or attention in each layer, and experts in some."""
    sizes = Sizes(kind, config, GRANITE_4)
    bias = sizes.flag("attention_bias")
    kinds = _listed(sizes, ATTENTION | STATE) or ("mamba",) * sizes.layers
    attention = split_attention(sizes, bias=bias, out_bias=bias)
    inner = sizes.number("mamba_expand", default=2) * sizes.number("hidden_size")
    state = _mamba2(sizes, inner, norm=True, out_bias=sizes.flag("mamba_proj_bias"))
    if sizes.optional("num_local_experts"):
        feed = sparse_feed(sizes, GRANITE)
    else:
        shared, hidden = sizes.number("shared_intermediate_size"), sizes.number("hidden_size")
        linears = (
            Linear(name="input_linear", columns=hidden, rows=2 * shared),
            Linear(name="output_linear", columns=shared, rows=hidden),
        )
        feed = FeedForward(linears=linears, width=shared)
    return decoder(
        sizes, lambda at: (attention if kinds[at] in ATTENTION else state, feed), tied=False
    )


def read_falcon_h1(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Falcon-H1, whose layers attend and have a Mamba 2 side by side."""
    sizes = Sizes(kind, config)
    hidden, bias = sizes.number("hidden_size"), sizes.flag("attention_bias")
    inner = sizes.optional("mamba_d_ssm") or sizes.number("mamba_expand", default=2) * hidden
    attention = split_attention(sizes, bias=bias, out_bias=bias)
    state = _mamba2(
        sizes, inner, norm=sizes.flag("mamba_rms_norm"), out_bias=sizes.flag("projectors_bias")
    )
    both = Attention(
        linears=attention.linears + state.linears,
        queries=attention.queries + state.queries,
        keys=attention.keys + state.keys,
        others=state.others,
    )
    feed = gated(hidden, sizes.number("intermediate_size"), bias=sizes.flag("mlp_bias"))
    return decoder(sizes, lambda _: (both, feed), tied=False)


def _mamba2(sizes: Sizes, inner: int, *, norm: bool, out_bias: bool) -> Attention:
    """Return a Mamba 2 of `inner` channels, with its convolution over a few tokens."""
    hidden, heads = sizes.number("hidden_size"), sizes.number("mamba_n_heads", default=128)
    groups = sizes.number("mamba_n_groups", default=1)
    mixed = inner + 2 * groups * sizes.number("mamba_d_state", default=256)
    taps = sizes.number("mamba_d_conv", default=4)
    convolution = mixed * (taps + sizes.flag("mamba_conv_bias", default=True))
    into = Linear(
        name="in_proj",
        columns=hidden,
        rows=inner + mixed + heads,
        bias=sizes.flag("mamba_proj_bias"),
    )
    return Attention(
        linears=(into, Linear(name="out_proj", columns=inner, rows=hidden, bias=out_bias)),
        queries=inner,
        keys=mixed,
        others=convolution + 3 * heads + inner * norm,
    )


def _listed(sizes: Sizes, allowed: frozenset[str]) -> tuple[str, ...] | None:
    """Return `layer_types`, None if the config lists none; raises UnknownShapeError."""
    listed = sizes.texts("layer_types")
    if listed is not None and (len(listed) != sizes.layers or not set(listed) <= allowed):
        raise UnknownShapeError("its config.json has other `layer_types` than there are layers")
    return listed


def _lfm2_kinds(sizes: Sizes) -> tuple[str, ...]:
    """Return the kinds of layers where the config gives the numbers of those that attend."""
    full = sizes.numbers("full_attn_idxs")
    layers = range(sizes.layers)
    return tuple("full_attention" if full is None or at in full else "conv" for at in layers)


def _lfm2_width(sizes: Sizes, config: Mapping[str, Any]) -> int:
    """Return the width of the feed-forward part, which LFM2 rounds up after taking two thirds."""
    width = sizes.number("block_ff_dim", "intermediate_size")
    if not sizes.flag("block_auto_adjust_ff_dim", default=True):
        return width
    factor = config.get("block_ffn_dim_multiplier", 1.0)
    if type(factor) not in {int, float} or not 0 < factor < 100:
        raise UnknownShapeError("its config.json has no number as `block_ffn_dim_multiplier`")
    step = sizes.number("block_multiple_of", default=256)
    return step * -(-int(factor * int(2 * width / 3)) // step)
