"""Reads the sizes of a model from its `config.json` alone: every matrix, without loading any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class UnknownShapeError(Exception):
    """The config describes no architecture whose matrices are known here."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear layer of a block; `columns` in, `rows` out."""

    name: str
    columns: int
    rows: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        return self.columns * self.rows


@dataclass(frozen=True, kw_only=True)
class Block:
    """One kind of layer, `count` of them; widths are per token."""

    count: int
    linears: tuple[Linear, ...]
    norms: int
    queries: int
    keys: int
    feed_forward: int
    gated: bool
    # Layers that transformers never quantises, and keeps in float32 in a float16 model.
    never_quantised: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A whole model: its blocks, its embeddings and its head."""

    kind: str
    hidden: int
    vocabulary: int
    tied: bool
    blocks: tuple[Block, ...]
    encoder_decoder: bool = False
    other_parameters: int = 0  # learnt positions and the like

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers of all blocks."""
        return sum(block.count * sum(one.weights for one in block.linears) for block in self.blocks)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embeddings, and of the head if it is not the same matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def small_parameters(self) -> int:
        """Norms, biases and positions."""
        per_block = (
            block.count
            * (block.norms * self.hidden + sum(one.rows for one in block.linears if one.bias))
            for block in self.blocks
        )
        return sum(per_block) + self.hidden + self.other_parameters

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.linear_parameters + self.embedding_parameters + self.small_parameters


def read_shape(config: Mapping[str, Any]) -> Shape:
    """Return the sizes that `config` (a parsed `config.json`) describes.

    Raises:
        UnknownShapeError: it is of no known family and does not use the common names either.
    """
    if isinstance(config.get("text_config"), Mapping):  # a model that also sees
        config = config["text_config"]
    kind = str(config.get("model_type", ""))
    reader = READERS.get(kind, _llama)
    try:
        return reader(kind, config)
    except KeyError as error:
        raise UnknownShapeError(
            f"the config of `{kind or 'this model'}` has no {error}: its memory cannot be foretold"
        ) from error


def _llama(kind: str, config: Mapping[str, Any]) -> Shape:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    queries, keys = _attention(config, hidden)
    biased = bool(config.get("attention_bias", kind in {"qwen2", "qwen"}))
    linears: tuple[Linear, ...]
    if kind == "phi3":
        linears = (
            Linear(name="qkv_proj", columns=hidden, rows=queries + 2 * keys),
            Linear(name="o_proj", columns=queries, rows=hidden),
            Linear(name="gate_up_proj", columns=hidden, rows=2 * wide),
            Linear(name="down_proj", columns=wide, rows=hidden),
        )
    else:
        linears = (
            Linear(name="q_proj", columns=hidden, rows=queries, bias=biased),
            Linear(name="k_proj", columns=hidden, rows=keys, bias=biased),
            Linear(name="v_proj", columns=hidden, rows=keys, bias=biased),
            Linear(name="o_proj", columns=queries, rows=hidden),
            Linear(name="gate_proj", columns=hidden, rows=wide),
            Linear(name="up_proj", columns=hidden, rows=wide),
            Linear(name="down_proj", columns=wide, rows=hidden),
        )
    gemma = kind.startswith("gemma")
    norms = 4 if kind in {"gemma2", "gemma3", "gemma3_text"} else 2
    return Shape(
        kind=kind,
        hidden=hidden,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", gemma)),
        blocks=(
            Block(
                count=config["num_hidden_layers"],
                linears=linears,
                norms=norms,
                queries=queries,
                keys=keys,
                feed_forward=wide,
                gated=True,
            ),
        ),
    )


def _phi(kind: str, config: Mapping[str, Any]) -> Shape:
    hidden = config["hidden_size"]
    wide = config.get("intermediate_size") or 4 * hidden
    queries, keys = _attention(config, hidden)
    linears = (
        Linear(name="q_proj", columns=hidden, rows=queries, bias=True),
        Linear(name="k_proj", columns=hidden, rows=keys, bias=True),
        Linear(name="v_proj", columns=hidden, rows=keys, bias=True),
        Linear(name="dense", columns=queries, rows=hidden, bias=True),
        Linear(name="fc1", columns=hidden, rows=wide, bias=True),
        Linear(name="fc2", columns=wide, rows=hidden, bias=True),
    )
    return _plain(kind, config, linears, (queries, keys, wide))


def _neox(kind: str, config: Mapping[str, Any]) -> Shape:
    hidden = config["hidden_size"]
    wide = config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * hidden
    queries, keys = _attention(config, hidden)
    falcon = kind == "falcon"
    if falcon and not config.get("new_decoder_architecture", False):
        heads = config["num_attention_heads"]
        keys = hidden // heads if config.get("multi_query", True) else hidden
    bias = bool(config.get("bias", not falcon))
    linears = (
        Linear(name="query_key_value", columns=hidden, rows=queries + 2 * keys, bias=bias),
        Linear(name="dense", columns=queries, rows=hidden, bias=bias),
        Linear(name="dense_h_to_4h", columns=hidden, rows=wide, bias=bias),
        Linear(name="dense_4h_to_h", columns=wide, rows=hidden, bias=bias),
    )
    return _plain(kind, config, linears, (queries, keys, wide))


def _plain(
    kind: str,
    config: Mapping[str, Any],
    linears: tuple[Linear, ...],
    widths: tuple[int, int, int],
) -> Shape:
    queries, keys, wide = widths
    block = Block(
        count=config["num_hidden_layers"],
        linears=linears,
        norms=2,
        queries=queries,
        keys=keys,
        feed_forward=wide,
        gated=False,
    )
    return Shape(
        kind=kind,
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", kind == "falcon")),
        blocks=(block,),
    )


def _gpt2(kind: str, config: Mapping[str, Any]) -> Shape:
    hidden = config["n_embd"]
    wide = config.get("n_inner") or 4 * hidden
    linears = (
        Linear(name="c_attn", columns=hidden, rows=3 * hidden, bias=True),
        Linear(name="c_proj", columns=hidden, rows=hidden, bias=True),
        Linear(name="c_fc", columns=hidden, rows=wide, bias=True),
        Linear(name="c_proj", columns=wide, rows=hidden, bias=True),
    )
    block = Block(
        count=config["n_layer"],
        linears=linears,
        norms=4,  # two, each with a bias
        queries=hidden,
        keys=hidden,
        feed_forward=wide,
        gated=False,
    )
    positions = config.get("n_positions", 1024) * hidden
    return Shape(
        kind=kind,
        hidden=hidden,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", True)),
        blocks=(block,),
        other_parameters=positions + hidden,
    )


def _t5(kind: str, config: Mapping[str, Any]) -> Shape:
    hidden, wide = config["d_model"], config["d_ff"]
    width = config["num_heads"] * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    attention = (
        Linear(name="q", columns=hidden, rows=width),
        Linear(name="k", columns=hidden, rows=width),
        Linear(name="v", columns=hidden, rows=width),
        Linear(name="o", columns=width, rows=hidden),
    )
    inner = ("wi_0", "wi_1") if gated else ("wi",)
    feed = tuple(Linear(name=name, columns=hidden, rows=wide) for name in inner)
    feed += (Linear(name="wo", columns=wide, rows=hidden),)

    def block(count: int, attentions: int) -> Block:
        return Block(
            count=count,
            linears=attention * attentions + feed,
            norms=attentions + 1,
            queries=width * attentions,
            keys=width * attentions,
            feed_forward=wide,
            gated=gated,
            never_quantised=("wo",),
        )

    layers = config["num_layers"]
    return Shape(
        kind=kind,
        hidden=hidden,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", True)),
        blocks=(block(layers, 1), block(config.get("num_decoder_layers") or layers, 2)),
        encoder_decoder=True,
        # The final norm of the second stack, and a table of relative distances for each.
        other_parameters=hidden
        + 2 * config.get("relative_attention_num_buckets", 32) * config["num_heads"],
    )


def _attention(config: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    groups = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    return heads * head, groups * head


READERS: Mapping[str, Callable[[str, Mapping[str, Any]], Shape]] = MappingProxyType(
    {
        "phi": _phi, "falcon": _neox, "gpt_neox": _neox, "gpt2": _gpt2,
        "t5": _t5, "mt5": _t5, "umt5": _t5,
    }
)  # fmt: skip
