"""Decoders whose code lies on the hub beside them, and MPT: their matrices are fused otherwise.

What is no part of transformers is held by the published number of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.device.architectures.decoder import (
    Attention,
    FeedForward,
    Norms,
    decoder,
    gated,
    heads_of,
    plain,
)
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Linear, Shape

FUSED = ("query_key_value", "dense")


def read_mpt(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of MPT, which has no biases, not even in its norms."""
    old = Sizes(kind, config)
    hidden, layers = old.number("d_model", "hidden_size"), old.number("n_layers")
    sizes = Sizes(kind, {**config, "hidden_size": hidden, "num_hidden_layers": layers})
    attention = _fused(("Wqkv", "out_proj"), (hidden, hidden, hidden))
    feed = plain(hidden, sizes.number("expansion_ratio", default=4) * hidden)
    return decoder(sizes, lambda _: (attention, feed), tied=True)


def read_baichuan(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Baichuan 1 or 2: LLaMA with one matrix for queries, keys and values."""
    sizes = Sizes(kind, config)
    hidden = sizes.number("hidden_size")
    attention = _fused(("W_pack", "o_proj"), (hidden, hidden, hidden))
    feed = gated(hidden, sizes.number("intermediate_size"))
    return decoder(sizes, lambda _: (attention, feed), tied=False)


def read_internlm2(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of InternLM 2 or 2.5."""
    sizes = Sizes(kind, config)
    hidden, width = sizes.number("hidden_size"), sizes.number("intermediate_size")
    queries, keys, _ = heads_of(sizes)
    attention = _fused(("wqkv", "wo"), (hidden, queries, keys), bias=sizes.flag("bias"))
    feed = FeedForward(
        linears=(
            Linear(name="w1", columns=hidden, rows=width),
            Linear(name="w3", columns=hidden, rows=width),
            Linear(name="w2", columns=width, rows=hidden),
        ),
        width=width,
    )
    return decoder(sizes, lambda _: (attention, feed), tied=False)


def read_chatglm(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of ChatGLM 2 or 3, or of GLM-4 in its first form."""
    old = Sizes(kind, config)
    words = old.number("padded_vocab_size", "vocab_size")
    sizes = Sizes(
        kind, {**config, "vocab_size": words, "num_hidden_layers": old.number("num_layers")}
    )
    hidden, width = sizes.number("hidden_size"), sizes.number("ffn_hidden_size")
    head = sizes.optional("kv_channels") or hidden // sizes.number("num_attention_heads")
    queries = head * sizes.number("num_attention_heads")
    few = sizes.flag("multi_query_attention")
    keys = head * sizes.number("multi_query_group_num") if few else queries
    bias = sizes.flag("add_qkv_bias") or sizes.flag("add_bias_linear")
    attention = _fused(FUSED, (hidden, queries, keys), bias=bias)
    feed = FeedForward(
        linears=(
            Linear(name="dense_h_to_4h", columns=hidden, rows=2 * width),
            Linear(name="dense_4h_to_h", columns=width, rows=hidden),
        ),
        width=width,
    )
    return decoder(sizes, lambda _: (attention, feed), tied=False)


def read_phi3small(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of Phi-3-small, whose matrices all have biases."""
    sizes = Sizes(kind, config)
    hidden, width = sizes.number("hidden_size"), sizes.number("ff_intermediate_size")
    queries, keys, _ = heads_of(sizes)
    attention = _fused(FUSED, (hidden, queries, keys), bias=True, out_bias=True)
    feed = FeedForward(
        linears=(
            Linear(name="up_proj", columns=hidden, rows=2 * width, bias=True),
            Linear(name="down_proj", columns=width, rows=hidden, bias=True),
        ),
        width=width,
    )
    return decoder(sizes, lambda _: (attention, feed), tied=True, norms=Norms(vectors=2))


def _fused(
    names: tuple[str, str],
    widths: tuple[int, int, int],
    *,
    bias: bool = False,
    out_bias: bool = False,
) -> Attention:
    """Return attention with one matrix for queries, keys and values, and one for the output.

    `widths` are those of the model, of all queries and of all keys.
    """
    hidden, queries, keys = widths
    linears = (
        Linear(name=names[0], columns=hidden, rows=queries + 2 * keys, bias=bias),
        Linear(name=names[1], columns=queries, rows=hidden, bias=out_bias),
    )
    return Attention(linears=linears, queries=queries, keys=keys)
