"""Counts the parameters of models that transformers builds empty: the truth about their sizes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TENSOR_ELEMENTS_MAX = (1 << 31) - 1
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4, double-quantised, as bitsandbytes describes it."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Numbers of parameters of a model; `bytes_in_nf4` in bfloat16 beside NF4."""

    total: int
    linear: int
    experts: int
    embeddings: int
    bytes_in_nf4: float


def build_empty(config: Mapping[str, Any]) -> Any:
    """Return the model on torch's meta device: all shape, no weight."""
    import torch
    import transformers as tf

    described = tf.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    if described.is_encoder_decoder:
        family = tf.AutoModelForSeq2SeqLM
    elif type(described) in tf.MODEL_FOR_CAUSAL_LM_MAPPING:
        family = tf.AutoModelForCausalLM
    else:
        family = tf.AutoModelForImageTextToText
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return family.from_config(described)


def count(model: Any) -> Counted:
    """Return what the parameters of an empty model are, each looked at by itself."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from trainer.adapters.quantise import simplify

    simplify(model)
    head, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    never = tuple(model._keep_in_fp32_modules or ())
    total = linear = experts = 0
    in_nf4 = 0.0
    seen: set[int] = set()
    for path, module in model.named_modules():
        for tensor in module._parameters.values():
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size, is_matrix = tensor.numel(), tensor.dim() == 2
            plain = type(module) in {torch.nn.Linear, Conv1D} and module is not head and is_matrix
            stack = type(module).__name__.endswith("Experts") and tensor.dim() == 3
            total += size
            linear += size if plain else 0
            experts += size if stack else 0
            quantised = (plain and path.rpartition(".")[2] not in never) or stack
            fits = size <= TENSOR_ELEMENTS_MAX or not stack
            in_nf4 += size * (FOUR_BIT if quantised and fits else 2.0)
    untied = head is not None and head.weight is not inputs.weight
    return Counted(
        total=total,
        linear=linear,
        experts=experts,
        embeddings=inputs.weight.numel() * (2 if untied else 1),
        bytes_in_nf4=in_nf4,
    )
