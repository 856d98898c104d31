"""Mixtures of experts: which layers have experts, how many, how wide, and how many are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from trainer.device.architectures.decoder import Attention, FeedForward, Norms, decoder, gated
from trainer.device.architectures.dense import (
    BIASED,
    QWEN2,
    QWEN3,
    Answer,
    Family,
    attention_of,
)
from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Experts, Linear, Shape


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of experts; texts are the keys of the config that hold the numbers."""

    attention: Family
    count: tuple[str, ...] = ("num_local_experts", "num_experts")
    chosen: tuple[str, ...] = ("num_experts_per_tok",)
    width: str = "intermediate_size"
    shared_width: str = ""
    """Of one expert that every token passes."""
    shared_count: str = ""
    """How many such experts of the common width there are, as one."""
    shared: Literal["gated", "fused"] = "gated"
    shared_gate: bool = False
    biased: bool = False
    """Experts and their router have biases."""
    dense: Literal["none", "first", "listed", "interleaved"] = "none"
    """Which layers have no experts."""
    dense_width: str = "intermediate_size"
    feed_bias: Answer = False
    """Of dense layers and shared experts."""
    latent: bool = False
    """Keys and values come from a small vector (MLA)."""
    sinks: bool = False
    shared_unadapted: bool = False
    """PEFT 0.21 understands the names of its shared experts as those of experts."""
    head_bias: Answer = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


DEEPSEEK = Mixture(
    attention=BIASED, count=("n_routed_experts",), width="moe_intermediate_size",
    shared_count="n_shared_experts", dense="first", latent=True, shared_unadapted=True,
)  # fmt: skip
QWEN_MOE = Mixture(
    attention=replace(QWEN3, head=None), width="moe_intermediate_size", dense="listed"
)
QWEN3_VL_MOE = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "moe_intermediate_size": 1408,
    "num_experts_per_tok": 4, "num_experts": 60, "decoder_sparse_step": 1,
}  # fmt: skip
LLAMA_4 = {
    "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192,
    "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "head_dim": 128, "num_experts_per_tok": 1, "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
}  # fmt: skip

MIXTURES: Mapping[str, Mixture] = MappingProxyType(
    {
        "mixtral": Mixture(attention=Family()),
        "qwen2_moe": Mixture(
            attention=replace(QWEN2, bias="qkv_bias", bias_default=True),
            width="moe_intermediate_size", shared_width="shared_expert_intermediate_size",
            shared_gate=True, dense="listed",
        ),
        "qwen3_moe": QWEN_MOE,
        "qwen3_vl_moe_text": replace(QWEN_MOE, defaults=QWEN3_VL_MOE),
        "deepseek_v2": replace(DEEPSEEK, feed_bias="mlp_bias"),
        "deepseek_v3": DEEPSEEK,
        "glm4_moe": Mixture(
            attention=Family(
                bias="attention_bias", head_norms="head", head_norms_if="use_qk_norm"
            ),
            count=("n_routed_experts",), width="moe_intermediate_size",
            shared_count="n_shared_experts", dense="first", shared_unadapted=True,
        ),
        "gpt_oss": Mixture(
            attention=replace(BIASED, bias_default=True, head=64), biased=True, sinks=True
        ),
        "llama4_text": Mixture(
            attention=BIASED, shared_width="intermediate_size", dense="interleaved",
            dense_width="intermediate_size_mlp", defaults=LLAMA_4,
        ),
        "olmoe": Mixture(attention=replace(BIASED, head_norms="width")),
        "granitemoe": Mixture(attention=BIASED),
        "granitemoeshared": Mixture(
            attention=BIASED, shared_width="shared_intermediate_size", shared="fused"
        ),
        "phimoe": Mixture(
            attention=replace(BIASED, norm_vectors=2), head_bias="lm_head_bias"
        ),
        "minimax_m2": Mixture(attention=Family(head=128, head_norms="width")),
    }
)  # fmt: skip


def read_mixture(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of a mixture of `MIXTURES`; raises UnknownShapeError."""
    mixture = MIXTURES[kind]
    sizes = Sizes(kind, config, mixture.defaults)
    hidden, vectors = sizes.number("hidden_size"), mixture.attention.norm_vectors
    attention = _latent(sizes) if mixture.latent else attention_of(sizes, mixture.attention)
    if mixture.sinks:
        sinks = sizes.number("num_attention_heads")
        attention = replace(attention, others=attention.others + sinks)
    sparse = sparse_feed(sizes, mixture)
    full = _dense_layers(sizes, mixture)
    bias = sizes.whether(mixture.feed_bias)
    dense = gated(hidden, sizes.number(mixture.dense_width), bias=bias) if full else sparse
    head_bias = sizes.number("vocab_size") * sizes.whether(mixture.head_bias)
    shape = decoder(
        sizes,
        lambda at: (attention, dense if at in full else sparse),
        tied=mixture.attention.tied,
        norms=Norms(vectors=vectors),
        other_parameters=vectors * hidden + head_bias,
    )
    return without_adapters(shape) if mixture.shared_unadapted else shape


def without_adapters(shape: Shape) -> Shape:
    """Return a mixture whose layers of the names of LLaMA's feed-forward part stay frozen."""
    names = ("gate_proj", "up_proj", "down_proj")
    return replace(shape, blocks=tuple(replace(one, unadapted=names) for one in shape.blocks))


def sparse_feed(sizes: Sizes, mixture: Mixture) -> FeedForward:
    """Return the feed-forward part of a layer with experts, its router in `others`."""
    hidden, width = sizes.number("hidden_size"), sizes.number(mixture.width)
    count, chosen = sizes.number(*mixture.count), sizes.number(*mixture.chosen)
    chosen = min(chosen, count)
    experts = (
        Experts(name="gate_up_proj", columns=hidden, rows=2 * width, count=count, chosen=chosen),
        Experts(name="down_proj", columns=width, rows=hidden, count=count, chosen=chosen),
    )
    others = count * hidden
    if mixture.biased:
        others += count * (1 + 2 * width + hidden)
    linears: tuple[Linear, ...] = ()
    shared = 0
    if mixture.shared_width:
        shared = sizes.optional(mixture.shared_width) or 0
    elif mixture.shared_count:
        shared = width * (sizes.optional(mixture.shared_count) or 0)
    if shared:
        linears = gated(hidden, shared, bias=sizes.whether(mixture.feed_bias)).linears
        if mixture.shared == "fused":
            linears = (
                Linear(name="input_linear", columns=hidden, rows=2 * shared),
                Linear(name="output_linear", columns=shared, rows=hidden),
            )
    if mixture.shared_gate:
        linears += (Linear(name="shared_expert_gate", columns=hidden, rows=1),)
    return FeedForward(
        linears=linears, width=chosen * width + shared, experts=experts, others=others
    )


def _dense_layers(sizes: Sizes, mixture: Mixture) -> frozenset[int]:
    """Return the numbers of the layers without experts."""
    layers = range(sizes.layers)
    if mixture.dense == "first":
        return frozenset(layers[: sizes.optional("first_k_dense_replace") or 0])
    if mixture.dense == "listed":
        step = sizes.number("decoder_sparse_step", default=1)
        named = sizes.numbers("mlp_only_layers") or ()
        return frozenset(at for at in layers if at in named or (at + 1) % step)
    if mixture.dense == "interleaved":
        step = sizes.number("interleave_moe_layer_step", default=1)
        sparse = sizes.numbers("moe_layers") or range(step - 1, len(layers), step)
        return frozenset(layers) - frozenset(sparse)
    return frozenset()


def _latent(sizes: Sizes) -> Attention:
    """Return DeepSeek's attention, whose keys and values come from one small vector."""
    hidden, heads = sizes.number("hidden_size"), sizes.number("num_attention_heads")
    plain = sizes.number("qk_nope_head_dim", default=128)
    turned = sizes.number("qk_rope_head_dim", default=64)
    values = sizes.number("v_head_dim", default=128)
    small, bias = sizes.number("kv_lora_rank", default=512), sizes.flag("attention_bias")
    queries = heads * (plain + turned)
    rank = sizes.optional("q_lora_rank")
    others = small
    if rank:
        query: tuple[Linear, ...] = (
            Linear(name="q_a_proj", columns=hidden, rows=rank, bias=bias),
            Linear(name="q_b_proj", columns=rank, rows=queries),
        )
        others += rank
    else:
        query = (Linear(name="q_proj", columns=hidden, rows=queries),)
    linears = (
        *query,
        Linear(name="kv_a_proj_with_mqa", columns=hidden, rows=small + turned, bias=bias),
        Linear(name="kv_b_proj", columns=small, rows=heads * (plain + values)),
        Linear(name="o_proj", columns=heads * values, rows=hidden, bias=bias),
    )
    return Attention(linears=linears, queries=queries, keys=heads * values, others=others)
