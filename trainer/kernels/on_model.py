"""Compares a kernel with the plain way on the model itself: the last proof before it is used.

Small tensors cannot show what an architecture does around them: a mask that it changes, a state
that goes from row to row, a module that only looks like the usual one. Two short rows can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trainer.data.packed import bounds_of
from trainer.kernels.attention_use import ROW_LENGTHS, autocast, padded_rows, row_ids
from trainer.kernels.equality import relative_difference
from trainer.kernels.kernel_set import NO_KERNELS, Card, KernelSet

FLOORS: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
)
"""Differences that rounding makes in a deep model, whatever two short rows show."""
NOISE_FACTOR = 4
"""Over the difference that padding makes to the plain way, which is rounding alone."""
NOISE_MAX = 0.1
TRAINED_NUMBERS_MAX = 1 << 22
"""Of parameters whose gradients are compared, from either end of the model; larger tensors, such as
an embedding that is trained, are left out: a card may be nearly full."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model makes of two rows."""

    logits: torch.Tensor
    """[tokens, vocabulary], of both rows without padding."""
    gradient: torch.Tensor
    """Of the summed cross-entropy of all tokens but the first, for the first and last of the
    trained parameters: what a layer in between computes wrongly changes both."""


def find_model_difference(model: Any, kernels: KernelSet, card: Card) -> str | None:
    """Return how logits or gradients of two rows differ from the plain way, None if they do not.

    How much rounding changes is measured: the plain way computes the rows together, padded, and
    each alone. Dropout is off; nothing is drawn, trained or kept.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        batch = _padded(model, card)
        together = _outcome(model, card, batch)
        alone = _outcome_of_each(model, card)
        given = _packed(model, card) if kernels.packed else batch
        if not kernels.masked:
            given = {name: value for name, value in given.items() if name != "attention_mask"}
        found = _outcome(model, card, given, kernels)
        if kernels.packed and not _ignores_neighbours(model, card, given, kernels, found):
            return "what this base makes of a row changes with the row before it"
    finally:
        for module, mode in modes:
            module.training = mode
    for name, verb in (("logits", "differ"), ("gradient", "differs")):
        reference = getattr(together, name)
        noise = relative_difference(getattr(alone, name), reference)
        if not noise <= NOISE_MAX:
            return f"rounding alone changes the {name} of this base by {noise:.1e}"
        gap = relative_difference(getattr(found, name), reference)
        if not gap <= max(NOISE_FACTOR * noise, FLOORS[card.dtype]):
            return (
                f"the {name} of this base {verb} from the plain way by {gap:.1e} of its length, "
                f"and rounding makes {noise:.1e}"
            )
    return None


def _ignores_neighbours(
    model: Any, card: Card, batch: Mapping[str, Any], kernels: KernelSet, found: Outcome
) -> bool:
    """Tell whether the last row has the same bits behind another first row.

    The tokens are as many, so every product is cut in the same way. Only bits show it in 16-bit
    arithmetic: a state that goes from row to row may change less than rounding does.
    """
    first = ROW_LENGTHS[0]
    ids = batch["input_ids"].clone()
    ids[:, :first] = ids[:, :first].flip(-1)
    other = {**batch, "input_ids": ids}
    again = _outcome(model, card, other, kernels)
    return torch.equal(again.logits[first:], found.logits[first:])


def _padded(model: Any, card: Card) -> dict[str, Any]:
    ids, mask = padded_rows(model, card)
    return {"input_ids": ids, "attention_mask": mask}


def _packed(model: Any, card: Card) -> dict[str, Any]:
    bounds = {name: value.to(card.device) for name, value in bounds_of(ROW_LENGTHS).items()}
    return {"input_ids": torch.cat(row_ids(model, card))[None], **bounds}


def _outcome_of_each(model: Any, card: Card) -> Outcome:
    """Compute one row at a time, and put logits and gradients together."""
    each = [
        _outcome(
            model, card, {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
        )
        for row in row_ids(model, card)
    ]
    return Outcome(
        logits=torch.cat([one.logits for one in each]),
        gradient=torch.stack([one.gradient for one in each]).sum(dim=0),
    )


def _outcome(
    model: Any,
    card: Card,
    batch: Mapping[str, Any],
    kernels: KernelSet = NO_KERNELS,
) -> Outcome:
    """Run rows forward and backward."""
    ids = batch["input_ids"]
    names = ("input_ids", "attention_mask", "position_ids")
    arguments = {name: batch[name] for name in names if name in batch}
    if getattr(model.config, "is_encoder_decoder", False):
        arguments["decoder_input_ids"] = ids
    trained = _outer([value for value in model.parameters() if value.requires_grad])
    with kernels.enabled(batch), torch.enable_grad():
        with autocast(card):
            logits = model(**arguments, use_cache=False).logits
        rows = _rows(logits, batch), _rows(ids, batch)
        losses = [
            cross_entropy(row[:-1].float(), wanted[1:], reduction="sum")
            for row, wanted in zip(*rows, strict=True)
        ]
        loss = torch.stack(losses).sum()
        gradients = torch.autograd.grad(loss, trained, materialize_grads=True) if trained else ()
    flat = [one.detach().float().flatten() for one in gradients]
    return Outcome(
        logits=torch.cat(rows[0]).detach().float(),
        gradient=torch.cat(flat) if flat else loss.detach()[None],
    )


def _outer(trained: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return parameters from both ends, as many as their gradients may take."""
    small = [value for value in trained if value.numel() <= TRAINED_NUMBERS_MAX]
    kept: dict[int, torch.Tensor] = {}
    for order in (small, list(reversed(small))):
        room = TRAINED_NUMBERS_MAX
        for value in order:
            room -= value.numel()
            if room < 0:
                break
            kept[id(value)] = value
    return list(kept.values())


def _rows(values: torch.Tensor, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return what belongs to each row of [batch, tokens, ...], without padding."""
    if len(values) == len(ROW_LENGTHS):
        return [row[:length] for row, length in zip(values, ROW_LENGTHS, strict=True)]
    if "position_ids" in batch:
        return list(torch.split(values[0], list(ROW_LENGTHS)))
    return [values[0]]
