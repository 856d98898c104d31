"""Reads the sizes of a model from its `config.json` alone: every matrix, without loading any.

Only architectures of a closed list are read, each held by a test against the count of the model
that transformers builds (`tests/test_base_shapes.py`); of any other nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from trainer.device.architectures.dense import FAMILIES, read_dense
from trainer.device.architectures.experts import MIXTURES, read_mixture
from trainer.device.architectures.gpt import (
    read_bloom,
    read_falcon,
    read_gpt2,
    read_gptj,
    read_neox,
    read_opt,
    read_phi,
    read_qwen,
)
from trainer.device.architectures.hub_code import (
    read_baichuan,
    read_chatglm,
    read_internlm2,
    read_mpt,
    read_phi3small,
)
from trainer.device.architectures.hybrid import read_hybrid
from trainer.device.architectures.sizes import Sizes
from trainer.device.architectures.state_space import (
    read_falcon_h1,
    read_granite_hybrid,
    read_lfm2,
)
from trainer.device.architectures.t5 import read_t5
from trainer.device.architectures.vision import MULTIMODAL, Multimodal
from trainer.device.model_shape import Block, Experts, Linear, Shape, UnknownShapeError

__all__ = ["SUPPORTED", "Block", "Experts", "Linear", "Shape", "UnknownShapeError", "read_shape"]

Reader = Callable[[str, Mapping[str, Any]], Shape]
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **dict.fromkeys(FAMILIES, read_dense),
        **dict.fromkeys(MIXTURES, read_mixture),
        **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), read_hybrid),
        **dict.fromkeys(("t5", "mt5", "umt5"), read_t5),
        "phi": read_phi, "gpt_neox": read_neox, "falcon": read_falcon, "gpt2": read_gpt2,
        "gptj": read_gptj, "opt": read_opt, "bloom": read_bloom, "qwen": read_qwen,
        "mpt": read_mpt, "baichuan": read_baichuan, "internlm2": read_internlm2,
        "chatglm": read_chatglm, "phi3small": read_phi3small, "lfm2": read_lfm2,
        "granitemoehybrid": read_granite_hybrid, "falcon_h1": read_falcon_h1,
    }
)  # fmt: skip
SUPPORTED = frozenset(READERS) | frozenset(MULTIMODAL)
"""Every `model_type` whose sizes are known from its config."""


def read_shape(config: Mapping[str, Any] | Shape) -> Shape:
    """Return the sizes that `config` (a parsed `config.json`) describes; a shape is itself.

    Raises:
        UnknownShapeError: its architecture is not in `SUPPORTED`, or a value in it is no size.
    """
    if isinstance(config, Shape):
        return config
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in SUPPORTED:
        raise UnknownShapeError(f"{named(config)} is of an architecture that is not known here")
    try:
        multimodal = MULTIMODAL.get(kind)
        return (
            READERS[kind](kind, config)
            if multimodal is None
            else _read_multimodal(multimodal, kind, config)
        )
    except UnknownShapeError as error:
        raise UnknownShapeError(f"the sizes of {named(config)} cannot be read: {error}") from error


def named(config: Mapping[str, Any]) -> str:
    """Return what a config says it describes, for a message."""
    kind = config.get("model_type")
    readable = isinstance(kind, str) and re.fullmatch(r"[\w.-]{1,40}", kind)
    return f"a `{kind}` model" if readable else "this model"


def _read_multimodal(multimodal: Multimodal, kind: str, config: Mapping[str, Any]) -> Shape:
    """Return the shape of the text model, with the tower beside it if that is loaded, too."""
    whole = Sizes(kind, config)
    text = config.get("text_config")
    if text is None and multimodal.flat:
        text = {key: value for key, value in config.items() if key != "model_type"}
    if not isinstance(text, Mapping):
        raise UnknownShapeError("its config.json has no `text_config`")
    inner = text.get("model_type", multimodal.text)
    if inner not in READERS:
        raise UnknownShapeError(f"the text model in it, {named(text)}, is not known here")
    shape = replace(READERS[inner](inner, text), kind=kind)
    if multimodal.tower is None:
        return shape
    tower = multimodal.tower(whole.part("vision_config", multimodal.vision), shape.hidden)
    tied = whole.flag("tie_word_embeddings", default=multimodal.tied)
    return replace(
        shape,
        tied=tied or (multimodal.tied_inside and shape.tied),
        blocks=shape.blocks + tower.blocks,
        other_parameters=shape.other_parameters + tower.others,
    )
