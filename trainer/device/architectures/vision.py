"""Models that also see: their text model, and the tower that lies beside it in memory.

Which of both transformers' causal class loads is its own choice: of some it takes the text model
alone, and then the tower counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trainer.device.architectures.decoder import plain
from trainer.device.architectures.sizes import LAYERS_MAX, Sizes
from trainer.device.model_shape import Block, Linear, UnknownShapeError


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What lies in memory beside the text model, though no text passes it."""

    blocks: tuple[Block, ...]
    others: int


TowerReader = Callable[[Sizes, int], Tower]
"""From the vision's config and the width of the text model."""


@dataclass(frozen=True, kw_only=True)
class Multimodal:
    """A model that sees: the text model's kind where its config does not say, and its tower."""

    text: str
    tower: TowerReader | None = None
    """None: transformers loads the text model alone."""
    flat: bool = False
    """Older configs have the keys of the text model beside `vision_config`, without a part."""
    tied: bool = False
    tied_inside: bool = False
    """The text model's config may say so, too."""
    vision: Mapping[str, Any] = field(default_factory=dict)


def idle(count: int, linears: tuple[Linear, ...], others: int) -> Block:
    """Return layers that no text passes."""
    return Block(
        count=count, linears=linears, norms=0, queries=0, keys=0, feed_forward=0, gated=False,
        others=others, idle=True,
    )  # fmt: skip


def _siglip(vision: Sizes, text: int) -> Tower:
    """Return SigLIP's tower with Gemma 3's projector, whose matrix is no linear layer."""
    hidden, width = vision.number("hidden_size"), vision.number("intermediate_size")
    patch = vision.number("patch_size")
    places = (vision.number("image_size") // patch) ** 2
    names = ("k_proj", "v_proj", "q_proj", "out_proj")
    linears = tuple(Linear(name=one, columns=hidden, rows=hidden, bias=True) for one in names)
    linears += plain(hidden, width, bias=True, names=("fc1", "fc2")).linears
    colours = vision.number("num_channels", default=3)
    others = (colours * patch * patch + 1) * hidden + places * hidden + 2 * hidden
    blocks = [idle(_depth(vision, "num_hidden_layers"), linears, 4 * hidden)]
    if vision.flag("vision_use_head", default=True):
        # Its attention has queries, keys and values in a tensor that is no linear layer.
        head = (linears[3], *plain(hidden, width, bias=True, names=("fc1", "fc2")).linears)
        blocks.append(idle(1, head, 2 * hidden))
        others += hidden + 3 * hidden * hidden + 3 * hidden
    return Tower(blocks=tuple(blocks), others=others + hidden * text + hidden)


def _qwen2(vision: Sizes, _text: int) -> Tower:
    hidden = vision.number("embed_dim")
    width = hidden * vision.number("mlp_ratio")
    linears = _qwen_attention(hidden) + plain(
        hidden, width, bias=True, names=("fc1", "fc2")
    ).linears  # fmt: skip
    merged = hidden * vision.number("spatial_merge_size") ** 2
    out = vision.number("hidden_size")
    return Tower(
        blocks=(
            idle(_depth(vision, "depth"), linears, 4 * hidden),
            idle(1, _merger(merged, out, ("0", "2")), 0),
        ),
        others=_patches(vision, hidden) + 2 * hidden,
    )


def _qwen2_5(vision: Sizes, _text: int) -> Tower:
    hidden, width = vision.number("hidden_size"), vision.number("intermediate_size")
    linears = (
        *_qwen_attention(hidden),
        Linear(name="gate_proj", columns=hidden, rows=width, bias=True),
        Linear(name="up_proj", columns=hidden, rows=width, bias=True),
        Linear(name="down_proj", columns=width, rows=hidden, bias=True),
    )
    merged = hidden * vision.number("spatial_merge_size") ** 2
    out = vision.number("out_hidden_size")
    return Tower(
        blocks=(
            idle(_depth(vision, "depth"), linears, 2 * hidden),
            idle(1, _merger(merged, out, ("0", "2")), 0),
        ),
        others=_patches(vision, hidden) + hidden,
    )


def _qwen3(vision: Sizes, _text: int) -> Tower:
    hidden, width = vision.number("hidden_size"), vision.number("intermediate_size")
    names = ("linear_fc1", "linear_fc2")
    linears = _qwen_attention(hidden) + plain(hidden, width, bias=True, names=names).linears
    merged = hidden * vision.number("spatial_merge_size") ** 2
    merger = _merger(merged, vision.number("out_hidden_size"), names)
    deep = vision.numbers("deepstack_visual_indexes")
    deeper = 3 if deep is None else len(deep)
    blocks = [
        idle(_depth(vision, "depth"), linears, 4 * hidden),
        idle(1, merger, 2 * hidden),
        *([idle(deeper, merger, 2 * merged)] if deeper else []),
    ]
    places = vision.number("num_position_embeddings") * hidden
    return Tower(blocks=tuple(blocks), others=_patches(vision, hidden) + hidden + places)


def _qwen_attention(hidden: int) -> tuple[Linear, ...]:
    return (
        Linear(name="qkv", columns=hidden, rows=3 * hidden, bias=True),
        Linear(name="proj", columns=hidden, rows=hidden, bias=True),
    )


def _merger(merged: int, out: int, names: tuple[str, str]) -> tuple[Linear, ...]:
    return (
        Linear(name=names[0], columns=merged, rows=merged, bias=True),
        Linear(name=names[1], columns=merged, rows=out, bias=True),
    )


def _patches(vision: Sizes, hidden: int) -> int:
    """Return the weights of the convolution over patches of two pictures."""
    size = vision.number("patch_size")
    time = vision.number("temporal_patch_size", default=2)
    return hidden * vision.number("in_channels", "in_chans", default=3) * time * size * size


def _depth(vision: Sizes, key: str) -> int:
    found = vision.number(key)
    if found > LAYERS_MAX:
        raise UnknownShapeError(f"its config.json has {found} as `{key}`")
    return found


SIGLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 224,
    "patch_size": 16,
}  # fmt: skip
QWEN2 = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14,
         "spatial_merge_size": 2}  # fmt: skip
QWEN2_5 = {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14,
           "spatial_merge_size": 2, "out_hidden_size": 3584}  # fmt: skip
QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16,
         "spatial_merge_size": 2, "out_hidden_size": 3584,
         "num_position_embeddings": 2304}  # fmt: skip

MULTIMODAL: Mapping[str, Multimodal] = MappingProxyType(
    {
        "gemma3": Multimodal(text="gemma3_text", tower=_siglip, tied=True, vision=SIGLIP),
        "llama4": Multimodal(text="llama4_text"),
        "qwen2_vl": Multimodal(
            text="qwen2_vl_text", tower=_qwen2, flat=True, tied_inside=True, vision=QWEN2
        ),
        "qwen2_5_vl": Multimodal(
            text="qwen2_5_vl_text", tower=_qwen2_5, flat=True, tied_inside=True, vision=QWEN2_5
        ),
        "qwen3_vl": Multimodal(text="qwen3_vl_text", tower=_qwen3, vision=QWEN3),
        "qwen3_vl_moe": Multimodal(text="qwen3_vl_moe_text", tower=_qwen3, vision=QWEN3),
        "qwen3_5": Multimodal(text="qwen3_5_text"),
        "qwen3_5_moe": Multimodal(text="qwen3_5_moe_text"),
    }
)
