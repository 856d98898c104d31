"""Decoders of the kind of LLaMA: one row says in what an architecture differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from trainer.device.architectures.decoder import (
    Attention,
    FeedForward,
    Norms,
    decoder,
    gated,
    heads_of,
    plain,
    split_attention,
)
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Linear, Shape

Answer = bool | str
"""Yes, no, or the key of the config that decides."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture; where nothing is said, it is LLaMA's."""

    bias: Answer = False  # of queries, keys and values
    out_bias: Answer = False
    feed_bias: Answer = False
    bias_default: bool = False  # where the key that decides is absent
    head: int | None = None  # width of a head where the config is silent
    head_norms: Literal["", "head", "width", "heads"] = ""  # of queries and keys, and how wide
    head_norms_if: Answer = True
    feed: Literal["gated", "fused", "plain"] = "gated"
    fused_attention: bool = False
    feed_names: tuple[str, str] = ("up_proj", "down_proj")
    norms: int = 2
    norm_vectors: int = 1  # vectors of a norm: 2 with a bias, 0 without weights
    feed_others: int = 0
    tied: bool = False
    refused: tuple[str, ...] = ()  # keys that change the sizes in a way that is not known here
    defaults: Mapping[str, Any] = field(default_factory=dict)


BIASED = Family(bias="attention_bias", out_bias="attention_bias")
LLAMA = replace(BIASED, feed_bias="mlp_bias")
QWEN2 = Family(bias=True)
QWEN3 = replace(BIASED, head=128, head_norms="head")
GEMMA = replace(BIASED, head=256, tied=True)
OLMO2 = replace(BIASED, head_norms="width")
GLM = Family(bias="attention_bias", bias_default=True, head=128, feed="fused")

# What transformers' classes take for a key that a text model inside of another does not give.
LLAMA_7B = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32}  # fmt: skip
MISTRAL_7B = {**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8}
MINISTRAL_8B = {**MISTRAL_7B, "vocab_size": 131072, "num_hidden_layers": 34, "head_dim": 128}
GEMMA_3 = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
QWEN_VL = {
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
QWEN3_VL = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
            "num_hidden_layers": 32, "num_attention_heads": 32}  # fmt: skip

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": replace(LLAMA, defaults=LLAMA_7B),
        "mistral": Family(defaults=MISTRAL_7B),
        "ministral3": Family(defaults=MINISTRAL_8B),
        "qwen2": QWEN2,
        "qwen2_vl_text": replace(QWEN2, defaults=QWEN_VL),
        "qwen2_5_vl_text": replace(QWEN2, defaults=QWEN_VL),
        "qwen3": QWEN3,
        "qwen3_vl_text": replace(QWEN3, defaults=QWEN3_VL),
        "gemma": GEMMA,
        "gemma2": replace(GEMMA, norms=4),
        "gemma3_text": replace(GEMMA, norms=4, head_norms="head", defaults=GEMMA_3),
        "granite": LLAMA,
        "smollm3": replace(LLAMA, tied=True),
        "seed_oss": Family(
            bias="attention_bias", bias_default=True, out_bias="attention_out_bias",
            feed_bias="mlp_bias", head=128,
        ),
        "olmo": replace(BIASED, norm_vectors=0),
        "olmo2": OLMO2,
        "olmo3": OLMO2,
        "exaone4": Family(head_norms="head"),
        "ernie4_5": Family(
            bias="use_bias", out_bias="use_bias", feed_bias="use_bias", head=128, tied=True
        ),
        "glm": GLM,
        "glm4": replace(GLM, norms=4),
        "phi3": Family(feed="fused", fused_attention=True),
        "stablelm": Family(
            bias="use_qkv_bias", norm_vectors=2, head_norms="heads", head_norms_if="qk_layernorm",
            refused=("head_dim",),
        ),
        "starcoder2": Family(
            bias="use_bias", out_bias="use_bias", feed_bias="use_bias", bias_default=True,
            feed="plain", feed_names=("c_fc", "c_proj"), norm_vectors=2, tied=True,
        ),
        "cohere": replace(
            BIASED, norms=1, head_norms="heads", head_norms_if="use_qk_norm", tied=True
        ),
        "cohere2": replace(BIASED, norms=1, tied=True),
        "arcee": replace(LLAMA, feed="plain"),
        "apertus": replace(BIASED, feed="plain", head_norms="head", feed_others=2),
    }
)  # fmt: skip


def read_dense(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of a decoder of `FAMILIES`; raises UnknownShapeError."""
    family = FAMILIES[kind]
    sizes = Sizes(kind, config, family.defaults)
    sizes.refuse_set(*family.refused)
    layer = (attention_of(sizes, family), _feed_of(sizes, family))
    one = kind == "stablelm" and sizes.flag("use_parallel_residual")
    norms = Norms(count=1 if one else family.norms, vectors=family.norm_vectors)
    return decoder(sizes, lambda _: layer, tied=family.tied, norms=norms)


def attention_of(sizes: Sizes, family: Family) -> Attention:
    """Return what attends in each layer of a family."""
    queries, keys, head = heads_of(sizes, head=family.head)
    bias, out_bias = (_has_bias(sizes, family, one) for one in (family.bias, family.out_bias))
    found = split_attention(sizes, bias=bias, out_bias=out_bias, head=family.head)
    if family.fused_attention:
        hidden = sizes.number("hidden_size")
        fused = Linear(name="qkv_proj", columns=hidden, rows=queries + 2 * keys, bias=bias)
        found = replace(found, linears=(fused, found.linears[-1]))
    widths = {"": 0, "head": 2 * head, "width": queries + keys, "heads": queries + keys}
    with_norms = sizes.whether(family.head_norms_if)
    return replace(found, others=widths[family.head_norms] * with_norms)


def _has_bias(sizes: Sizes, family: Family, answer: Answer) -> bool:
    """Return whether matrices have a bias; the default is that of the key for the queries."""
    return sizes.whether(answer, default=family.bias_default and answer == family.bias)


def _feed_of(sizes: Sizes, family: Family) -> FeedForward:
    hidden, width = sizes.number("hidden_size"), sizes.number("intermediate_size")
    bias = _has_bias(sizes, family, family.feed_bias)
    if family.feed == "plain":
        found = plain(hidden, width, bias=bias, names=family.feed_names)
        return replace(found, others=family.feed_others)
    found = gated(hidden, width, bias=bias)
    if family.feed == "fused":
        fused = Linear(name="gate_up_proj", columns=hidden, rows=2 * width)
        found = replace(found, linears=(fused, found.linears[-1]))
    return found
