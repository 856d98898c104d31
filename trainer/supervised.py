"""The loss over supervised positions only: exact, and the head never sees the others.

The logits of a whole batch (tokens times vocabulary) are the largest tensor of a short-answer
task, and most of them are thrown away. A hook in front of the head drops them before they exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trainer.data import NOT_TRAINED


def supervised_loss(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the summed cross-entropy (float32, nats) over all labels that are not NOT_TRAINED.

    `inputs` has `input_ids`, `attention_mask` and `labels`, [batch, length]. For a causal model the
    token at position t is predicted from position t - 1; an encoder-decoder shifts by itself.
    Everything after the head that works position by position (soft caps, scales) still applies.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = inputs["labels"]
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if base.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
        wanted = labels != NOT_TRAINED
        targets = labels[wanted]
    else:
        wanted = torch.zeros_like(labels, dtype=torch.bool)
        wanted[:, :-1] = labels[:, 1:] != NOT_TRAINED
        targets = labels[:, 1:][wanted[:, :-1]]

    def keep_supervised(_head: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (hidden[0][wanted], *hidden[1:])

    handle = base.get_output_embeddings().register_forward_pre_hook(keep_supervised)
    try:
        logits = model(**arguments, use_cache=False).logits
    finally:
        handle.remove()
    return cross_entropy(logits.float(), targets, reduction="sum")
