"""Computes the loss over target positions only; the others never reach the head.

The logits of a whole batch (tokens times vocabulary) are the largest tensor of a short-answer
task, and most of them are thrown away. A hook in front of the head drops them before they exist.
Where many positions are learnt from, the rest goes through the head in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from trainer.data.codec import NOT_TRAINED

# Logits in float32, once for the values and once for their gradient, stay below about 1 GB.
CHUNK_BYTES = 512 << 20


def summed_cross_entropy(
    model: Any, inputs: Mapping[str, torch.Tensor], *, chunk_bytes: int = CHUNK_BYTES
) -> torch.Tensor:
    """Return the summed cross-entropy (float32, nats) over all labels that are not NOT_TRAINED.

    `inputs` has `input_ids`, `attention_mask` and `labels`, [batch, length]. For a causal model the
    token at position t is predicted from position t - 1; an encoder-decoder shifts by itself.
    Everything after the head that works position by position (soft caps, scales) still applies.
    Logits of more than `chunk_bytes` are computed in chunks, and again in the backward pass.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    arguments, wanted, targets = _predictions(base, inputs)
    if _is_large(targets, head, chunk_bytes):
        hidden, plain = _hidden(model, head, arguments, wanted)
        if plain:
            losses = [
                checkpoint(_chunk_loss, head, hidden[cut], targets[cut], use_reentrant=False)
                for cut in _cuts(targets, head, chunk_bytes)
            ]
            return torch.stack(losses).sum()
    _, logits = _through(model, head, arguments, wanted, rows=None)
    return cross_entropy(logits.float(), targets, reduction="sum")


def target_losses(
    model: Any, inputs: Mapping[str, torch.Tensor], *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy (nats) of each target, and whether it is the most probable token.

    `inputs` as in `summed_cross_entropy`; both results are [targets], row by row. Softmax is in
    float32, in float64 for a model in float64. Call it without gradients: no graph is spared.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    arguments, wanted, targets = _predictions(base, inputs)
    if _is_large(targets, head, chunk_bytes):
        hidden, plain = _hidden(model, head, arguments, wanted)
        if plain:
            parts = [
                _judged(head(hidden[cut]), targets[cut])
                for cut in _cuts(targets, head, chunk_bytes)
            ]
            return torch.cat([nats for nats, _ in parts]), torch.cat([right for _, right in parts])
    _, logits = _through(model, head, arguments, wanted, rows=None)
    return _judged(logits, targets)


def _is_large(targets: torch.Tensor, head: Any, chunk_bytes: int) -> bool:
    """Tell whether the logits of all targets take more than a chunk, in float32."""
    return bool(targets.numel() * head.weight.shape[0] * 4 > chunk_bytes)


def _cuts(targets: torch.Tensor, head: Any, chunk_bytes: int) -> list[slice]:
    """Return the targets in stretches whose logits are at most a chunk."""
    rows = max(1, chunk_bytes // (head.weight.shape[0] * 4))
    return [slice(at, at + rows) for at in range(0, targets.numel(), rows)]


def _hidden(
    model: Any, head: Any, arguments: dict[str, Any], wanted: torch.Tensor
) -> tuple[torch.Tensor, bool]:
    """Return the hidden states of wanted positions, and whether logits are the head's alone.

    In some architectures something follows the head: then it cannot be applied apart.
    """
    hidden, sample = _through(model, head, arguments, wanted, rows=1)
    with torch.no_grad():
        return hidden, torch.equal(head(hidden[:1]), sample)


def _judged(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _predictions(
    base: Any, inputs: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return the model's arguments, the mask of positions that predict, and what they should."""
    labels = inputs["labels"]
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if base.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
        wanted = labels != NOT_TRAINED
        return arguments, wanted, labels[wanted]
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != NOT_TRAINED
    return arguments, wanted, labels[:, 1:][wanted[:, :-1]]


def _through(
    model: Any, head: Any, arguments: dict[str, Any], wanted: torch.Tensor, *, rows: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model; return the hidden states of wanted positions and the logits of `rows` of them.

    `rows=None` means logits of all wanted positions.
    """
    kept: list[torch.Tensor] = []

    def keep(_head: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(hidden[0][wanted])
        return (kept[0][:rows], *hidden[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        logits = model(**arguments, use_cache=False).logits
    finally:
        handle.remove()
    return kept[0], logits


def _chunk_loss(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="sum")
