"""Decoders of GPT's kind, and those before LLaMA: norms with biases, two matrices feed forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.device.architectures.decoder import (
    Attention,
    FeedForward,
    Norms,
    decoder,
    heads_of,
    plain,
    split_attention,
)
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Linear, Shape, UnknownShapeError

NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
"""Keys that these classes do not read, whatever a config says."""


def read_qwen(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of the first Qwen; its `intermediate_size` is that of gate and up together.

    Its code is no part of transformers; it is held by the published number of parameters.
    """
    sizes = Sizes(kind, config)
    hidden, width = sizes.number("hidden_size"), sizes.number("intermediate_size")
    if sizes.optional("kv_channels"):
        width //= 2
    attention = split_attention(sizes, bias=True)
    feed = FeedForward(
        linears=(
            Linear(name="w1", columns=hidden, rows=width),
            Linear(name="w2", columns=hidden, rows=width),
            Linear(name="c_proj", columns=width, rows=hidden),
        ),
        width=width,
    )
    return decoder(sizes, lambda _: (attention, feed), tied=False)


def read_phi(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Phi-1, Phi-1.5 or Phi-2: one norm a layer, and a head with a bias."""
    sizes = Sizes(kind, config)
    hidden = sizes.number("hidden_size")
    width = sizes.optional("intermediate_size") or 4 * hidden
    attention = split_attention(sizes, bias=True, out_bias=True, out="dense")
    if sizes.flag("qk_layernorm"):
        attention = replace(attention, others=4 * heads_of(sizes)[2])
    feed = plain(hidden, width, bias=True, names=("fc1", "fc2"))
    # One norm with a bias counts as much as the two without that the activations are counted by.
    last = 2 * hidden + sizes.number("vocab_size")
    return decoder(sizes, lambda _: (attention, feed), tied=False, other_parameters=last)


def read_neox(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of GPT-NeoX and Pythia."""
    sizes = Sizes(kind, config)
    hidden, bias = sizes.number("hidden_size"), sizes.flag("attention_bias", default=True)
    width = sizes.optional("intermediate_size") or 4 * hidden
    attention = _fused(sizes, hidden, hidden, bias=bias)
    feed = plain(hidden, width, bias=True, names=("dense_h_to_4h", "dense_4h_to_h"))
    return decoder(sizes, lambda _: (attention, feed), tied=False, norms=Norms(vectors=2))


def read_falcon(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Falcon: 7B, 40B and 180B differ in how keys and norms are shared."""
    sizes = Sizes(kind, config)
    hidden, heads = sizes.number("hidden_size"), sizes.number("num_attention_heads")
    width = sizes.optional("ffn_hidden_size") or 4 * hidden
    bias, newer = sizes.flag("bias"), sizes.flag("new_decoder_architecture")
    keys = hidden
    if newer:
        keys = hidden // heads * (sizes.optional("num_kv_heads") or heads)
    elif sizes.flag("multi_query", default=True):
        keys = hidden // heads
    attention = _fused(sizes, hidden, keys, bias=bias)
    feed = plain(hidden, width, bias=bias, names=("dense_h_to_4h", "dense_4h_to_h"))
    norms = sizes.optional("num_ln_in_parallel_attn") or (2 if newer else 1)
    if not sizes.flag("parallel_attn", default=True):
        norms = 2
    found = decoder(sizes, lambda _: (attention, feed), tied=True, norms=Norms(vectors=2))
    # The activations are counted by two norms, whatever there are.
    others = 2 * hidden * (norms - 2)
    blocks = tuple(replace(one, others=one.others + others) for one in found.blocks)
    return replace(found, blocks=blocks)


def read_gpt2(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of GPT-2, whose places are learnt."""
    old = Sizes(kind, config, {"n_positions": 1024})
    hidden, layers = old.number("n_embd", "hidden_size"), _layers_of(old)
    width = old.optional("n_inner") or 4 * hidden
    attention = Attention(
        linears=(
            Linear(name="c_attn", columns=hidden, rows=3 * hidden, bias=True),
            Linear(name="c_proj", columns=hidden, rows=hidden, bias=True),
        ),
        queries=hidden,
        keys=hidden,
    )
    feed = plain(hidden, width, bias=True, names=("c_fc", "c_proj"))
    sizes = Sizes(kind, {**config, "hidden_size": hidden, "num_hidden_layers": layers})
    positions = old.number("n_positions", "n_ctx") * hidden
    return decoder(
        sizes, lambda _: (attention, feed),
        tied=True, norms=Norms(count=4), other_parameters=positions + 2 * hidden,
    )  # fmt: skip


def read_gptj(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of GPT-J: one norm a layer, and a head with a bias."""
    old = Sizes(kind, config)
    hidden = old.number("n_embd", "hidden_size")
    heads = old.number("n_head", "num_attention_heads")
    width = old.optional("n_inner") or 4 * hidden
    names = {"hidden_size": hidden, "num_hidden_layers": _layers_of(old)}
    sizes = Sizes(kind, {**config, **names, "num_attention_heads": heads, **NO_GROUPS})
    attention = split_attention(sizes, out="out_proj")
    feed = plain(hidden, width, bias=True, names=("fc_in", "fc_out"))
    last = 2 * hidden + sizes.number("vocab_size")
    return decoder(sizes, lambda _: (attention, feed), tied=False, other_parameters=last)


def read_opt(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of OPT, whose places are learnt, two more than its texts may be long."""
    sizes = Sizes(kind, {**config, **NO_GROUPS})
    hidden, width = sizes.number("hidden_size"), sizes.number("ffn_dim")
    if sizes.number("word_embed_proj_dim", default=hidden) != hidden:
        raise UnknownShapeError("its embeddings are narrower than its layers")
    if not sizes.flag("layer_norm_elementwise_affine", default=True):
        raise UnknownShapeError("its norms have no weights")
    bias = sizes.flag("enable_bias", default=True)
    attention = split_attention(sizes, bias=bias, out_bias=bias, out="out_proj")
    feed = plain(hidden, width, bias=bias, names=("fc1", "fc2"))
    last = sizes.flag("do_layer_norm_before", default=True)
    last = last and not sizes.flag("_remove_final_layer_norm")
    positions = (sizes.number("max_position_embeddings", default=2048) + 2) * hidden
    return decoder(
        sizes, lambda _: (attention, feed),
        tied=True, norms=Norms(vectors=2), other_parameters=positions + 2 * hidden * last,
    )  # fmt: skip


def read_bloom(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of BLOOM, which also has a norm after its embeddings."""
    old = Sizes(kind, config)
    hidden = old.number("hidden_size", "n_embed")
    sizes = Sizes(kind, {**config, "hidden_size": hidden, "num_hidden_layers": _layers_of(old)})
    attention = _fused(sizes, hidden, hidden, bias=True)
    feed = plain(hidden, 4 * hidden, bias=True, names=("dense_h_to_4h", "dense_4h_to_h"))
    return decoder(
        sizes, lambda _: (attention, feed),
        tied=True, norms=Norms(vectors=2), other_parameters=4 * hidden,
    )  # fmt: skip


def _layers_of(sizes: Sizes) -> int:
    """Return the number of layers by its older name, or by the common one."""
    return sizes.number("n_layer", "num_hidden_layers")


def _fused(sizes: Sizes, queries: int, keys: int, *, bias: bool) -> Attention:
    hidden = sizes.number("hidden_size")
    rows = queries + 2 * keys
    linears = (
        Linear(name="query_key_value", columns=hidden, rows=rows, bias=bias),
        Linear(name="dense", columns=queries, rows=hidden, bias=bias),
    )
    return Attention(linears=linears, queries=queries, keys=keys)
