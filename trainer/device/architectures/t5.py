"""Encoder-decoders of T5's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.device.architectures.sizes import LAYERS_MAX, Sizes
from trainer.device.model_shape import Block, Linear, Shape, UnknownShapeError


def read_t5(kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of T5, mT5, UMT5 or Flan-T5."""
    sizes = Sizes(kind, config)
    hidden, wide = sizes.number("d_model", "hidden_size"), sizes.number("d_ff")
    heads = sizes.number("num_heads", "num_attention_heads")
    width = heads * sizes.number("d_kv")
    usual = "relu" if kind == "t5" else "gated-gelu"
    gated = sizes.text("feed_forward_proj", usual).startswith("gated")
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
            heads=heads * attentions,
            feed_forward=wide,
            gated=gated,
            others=(attentions + 1) * hidden,
            never_quantised=("wo",),
        )

    layers = sizes.number("num_layers", "num_hidden_layers")
    decoding = sizes.optional("num_decoder_layers") or layers
    if layers + decoding > LAYERS_MAX:
        raise UnknownShapeError(f"its config.json has {layers} as `num_layers`")
    # A table of relative distances for each stack, of UMT5 for each layer.
    tables = layers + decoding if kind == "umt5" else 2
    distances = sizes.number("relative_attention_num_buckets", default=32) * heads
    return Shape(
        kind=kind,
        hidden=hidden,
        vocabulary=sizes.number("vocab_size"),
        # transformers 5 says that all are tied, and does not tie what is saved with two matrices:
        # those of T5 v1.1 and Flan-T5, whose config it gives the other mark.
        tied=sizes.flag("tie_word_embeddings", default=True)
        and sizes.flag("scale_decoder_outputs", default=True),
        blocks=(block(layers, 1), block(decoding, 2)),
        encoder_decoder=True,
        other_parameters=2 * hidden + tables * distances,
    )
