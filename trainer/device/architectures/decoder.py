"""A decoder put together from what attends and what feeds forward in each of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from trainer.device.architectures.sizes import Sizes
from trainer.device.model_shape import Block, Experts, Linear, Shape


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The part of a layer that looks at other tokens; `others` are its norms and the like."""

    linears: tuple[Linear, ...]
    queries: int
    keys: int
    others: int = 0


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The part of a layer that sees one token; `width` is what one token passes through."""

    linears: tuple[Linear, ...]
    width: int
    gated: bool = True
    experts: tuple[Experts, ...] = ()
    others: int = 0


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The norms of a layer, each of `vectors` of the hidden size: 2 with a bias, 0 without weights.

    One more of the same kind follows the last layer.
    """

    count: int = 2
    vectors: int = 1


def decoder(
    sizes: Sizes,
    layer: Callable[[int], tuple[Attention, FeedForward]],
    *,
    tied: bool,
    norms: Norms | None = None,
    other_parameters: int | None = None,
) -> Shape:
    """Return the shape of `sizes.layers` layers, each as `layer` has it; equal ones are one block.

    `other_parameters` are those outside of the layers, where that is not just the last norm.
    """
    hidden, norms = sizes.number("hidden_size"), norms or Norms()
    heads = sizes.optional("num_attention_heads", "n_head", "num_heads") or 0
    blocks = tuple(
        Block(
            count=count,
            linears=attends.linears + feeds.linears,
            experts=feeds.experts,
            norms=norms.count,
            queries=attends.queries,
            keys=attends.keys,
            heads=heads,
            feed_forward=feeds.width,
            gated=feeds.gated,
            others=norms.count * norms.vectors * hidden + attends.others + feeds.others,
        )
        for (attends, feeds), count in Counter(layer(at) for at in range(sizes.layers)).items()
    )
    return Shape(
        kind=sizes.kind,
        hidden=hidden,
        vocabulary=sizes.number("vocab_size"),
        tied=sizes.flag("tie_word_embeddings", default=tied),
        blocks=blocks,
        other_parameters=norms.vectors * hidden if other_parameters is None else other_parameters,
    )


def heads_of(sizes: Sizes, *, head: int | None = None) -> tuple[int, int, int]:
    """Return the widths of all queries, of all keys and of one head.

    `head` is the width of a head where the config is silent, None if that divides the hidden size.
    """
    heads = sizes.number("num_attention_heads")
    usual = None if sizes.is_null("head_dim") else head
    size = sizes.optional("head_dim") or usual or sizes.number("hidden_size") // heads
    groups = sizes.optional("num_key_value_heads") or heads
    return heads * size, groups * size, size


def split_attention(
    sizes: Sizes,
    *,
    bias: bool = False,
    out_bias: bool = False,
    head: int | None = None,
    out: str = "o_proj",
) -> Attention:
    """Return attention with a matrix each for queries, keys, values and output."""
    hidden = sizes.number("hidden_size")
    queries, keys, _ = heads_of(sizes, head=head)
    linears = (
        Linear(name="q_proj", columns=hidden, rows=queries, bias=bias),
        Linear(name="k_proj", columns=hidden, rows=keys, bias=bias),
        Linear(name="v_proj", columns=hidden, rows=keys, bias=bias),
        Linear(name=out, columns=queries, rows=hidden, bias=out_bias),
    )
    return Attention(linears=linears, queries=queries, keys=keys)


def gated(hidden: int, width: int, *, bias: bool = False) -> FeedForward:
    """Return a feed-forward part with a gate, as in LLaMA."""
    linears = (
        Linear(name="gate_proj", columns=hidden, rows=width, bias=bias),
        Linear(name="up_proj", columns=hidden, rows=width, bias=bias),
        Linear(name="down_proj", columns=width, rows=hidden, bias=bias),
    )
    return FeedForward(linears=linears, width=width)


def plain(
    hidden: int,
    width: int,
    *,
    bias: bool = False,
    names: tuple[str, str] = ("up_proj", "down_proj"),
) -> FeedForward:
    """Return a feed-forward part of two matrices."""
    linears = (
        Linear(name=names[0], columns=hidden, rows=width, bias=bias),
        Linear(name=names[1], columns=width, rows=hidden, bias=bias),
    )
    return FeedForward(linears=linears, width=width, gated=False)
