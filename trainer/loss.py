"""Computes the loss over target positions only; the others never reach the head.

The logits of a whole batch (tokens times vocabulary) are the largest tensor of a short-answer
task, and most of them are thrown away. A hook in front of the head drops them before they exist.
Where many positions are learnt from, the rest goes through the head in chunks. Which positions
these are is known on the host, so nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from trainer.data.codec import NOT_TRAINED
from trainer.data.targets import TARGET_IDS, TARGET_POSITIONS, TARGET_SLOTS
from trainer.kernels.kernel_set import NO_KERNELS, KernelSet

# Logits in float32, once for the values and once for their gradient, stay below about 1 GB.
CHUNK_BYTES = 512 << 20


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Of a batch, what the model is called with."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which positions of a batch predict a token, and which; as `collate_targets` makes them."""

    positions: torch.Tensor
    ids: torch.Tensor
    slots: torch.Tensor


def summed_cross_entropy(
    model: Any,
    inputs: Mapping[str, Any],
    kernels: KernelSet = NO_KERNELS,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> torch.Tensor:
    """Return the summed cross-entropy (float32, nats) over all labels that are not NOT_TRAINED.

    `inputs` has `input_ids`, `attention_mask` and `labels`, [batch, length]. For a causal model the
    token at position t is predicted from position t - 1; an encoder-decoder shifts by itself. What
    `collate_targets` returns may be there, too; without it the labels are looked through, for which
    a GPU is waited for. Everything after the head that works position by position (soft caps,
    scales) still applies. Logits of more than `chunk_bytes` are computed in chunks, and again in
    the backward pass. `kernels` may compute head and loss in one, and leave out the mask.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    arguments, targets = _arguments(base, inputs, masked=kernels.masked), find_targets(base, inputs)
    if kernels.head_loss is not None or _is_large(targets.ids, head, chunk_bytes):
        hidden, plain = _hidden(model, head, arguments, targets)
        if plain and kernels.head_loss is not None:
            return kernels.head_loss(hidden, head, targets.ids)
        if plain:
            losses = [
                checkpoint(_chunk_loss, head, hidden[cut], targets.ids[cut], use_reentrant=False)
                for cut in _cuts(targets.ids, head, chunk_bytes)
            ]
            return torch.stack(losses).sum()
    _, logits = _through(model, head, arguments, targets, rows=None)
    return cross_entropy(logits.float(), targets.ids, reduction="sum")


def target_losses(
    model: Any, inputs: Mapping[str, Any], *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy (nats) of each target, and whether it is the most probable token.

    `inputs` as in `summed_cross_entropy`; both results are [targets], row by row. Softmax is in
    float32, in float64 for a model in float64. Call it without gradients: no graph is spared.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    arguments, targets = _arguments(base, inputs), find_targets(base, inputs)
    if _is_large(targets.ids, head, chunk_bytes):
        hidden, plain = _hidden(model, head, arguments, targets)
        if plain:
            parts = [
                _judged(head(hidden[cut]), targets.ids[cut])
                for cut in _cuts(targets.ids, head, chunk_bytes)
            ]
            return torch.cat([nats for nats, _ in parts]), torch.cat([right for _, right in parts])
    _, logits = _through(model, head, arguments, targets, rows=None)
    return _judged(logits, targets.ids)


def _is_large(targets: torch.Tensor, head: Any, chunk_bytes: int) -> bool:
    """Tell whether the logits of all targets take more than a chunk, in float32."""
    return bool(targets.numel() * head.weight.shape[0] * 4 > chunk_bytes)


def _cuts(targets: torch.Tensor, head: Any, chunk_bytes: int) -> list[slice]:
    """Return the targets in stretches whose logits are at most a chunk."""
    rows = max(1, chunk_bytes // (head.weight.shape[0] * 4))
    return [slice(at, at + rows) for at in range(0, targets.numel(), rows)]


_PLAIN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Of a model, whether its logits are what its head returns: its code decides that, not its rows."""


def _hidden(
    model: Any, head: Any, arguments: dict[str, Any], targets: Targets
) -> tuple[torch.Tensor, bool]:
    """Return the hidden states of target positions, and whether logits are the head's alone.

    In some architectures something follows the head: then it cannot be applied apart. That is
    compared once, since a GPU has to be waited for; later the head gets no row in the model.
    """
    plain = _PLAIN.get(model)
    spared = plain is True and type(head) is torch.nn.Linear  # others may not take an empty matrix
    hidden, sample = _through(model, head, arguments, targets, rows=0 if spared else 1)
    if plain is None:
        with torch.no_grad():
            plain = _PLAIN[model] = torch.equal(head(hidden[:1]), sample)
    return hidden, plain


def _judged(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _arguments(base: Any, inputs: Mapping[str, Any], *, masked: bool = True) -> dict[str, Any]:
    """Return what the model is called with."""
    arguments = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
    if not masked:
        arguments.pop("attention_mask", None)
    if base.config.is_encoder_decoder:
        labels = inputs["labels"]
        arguments["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
    return arguments


def find_targets(base: Any, inputs: Mapping[str, Any]) -> Targets:
    """Return the targets of a batch, from its labels if they are not there yet."""
    if TARGET_POSITIONS in inputs:
        return Targets(
            positions=inputs[TARGET_POSITIONS], ids=inputs[TARGET_IDS], slots=inputs[TARGET_SLOTS]
        )
    labels = inputs["labels"]
    if base.config.is_encoder_decoder:
        predicted = labels
    else:
        predicted = torch.full_like(labels, NOT_TRAINED)
        predicted[:, :-1] = labels[:, 1:]
    predicted = predicted.flatten()
    positions = (predicted != NOT_TRAINED).nonzero().squeeze(1)
    slots = torch.full_like(predicted, len(positions))
    slots[positions] = torch.arange(len(positions), device=slots.device)
    return Targets(positions=positions, ids=predicted[positions], slots=slots)


def _through(
    model: Any, head: Any, arguments: dict[str, Any], targets: Targets, *, rows: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model; return the hidden states of target positions and the logits of `rows` of them.

    `rows=None` means logits of all target positions.
    """
    kept: list[torch.Tensor] = []

    def keep(_head: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(_take_rows(hidden[0].flatten(0, -2), targets))
        return (kept[0][:rows], *hidden[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        logits = model(**arguments, use_cache=False).logits
    finally:
        handle.remove()
    return kept[0], logits


def _take_rows(matrix: torch.Tensor, targets: Targets) -> torch.Tensor:
    return _TakeRows.apply(matrix, targets.positions, targets.slots)  # type: ignore[no-any-return, no-untyped-call]  # torch has no types here


class _TakeRows(torch.autograd.Function):
    """Takes some rows of a matrix, each once.

    torch's own gradient of that adds up, in order, what might go to the same row: it sorts, and
    checks indices on the host. Here each row of the gradient is taken, too, or is zero.
    """

    @staticmethod
    def forward(
        ctx: Any, matrix: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(slots)
        return matrix.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        zero = gradient.new_zeros(1, gradient.shape[1])
        return torch.cat((gradient, zero)).index_select(0, slots), None, None


def _chunk_loss(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="sum")
