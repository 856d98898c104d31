"""Measures the loss of the right answers of held-out rows, row by row.

Softmax is in float32 and sums are in float64. Which rows share a batch is decided by the list of
rows, so a measurement that goes on after a kill gives the digits of one that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from trainer.base_limits import model_rows, require_embedded
from trainer.data.codec import Codec, Example
from trainer.data.examples import collate, padding_id
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.loss import target_losses
from trainer.scoring.constrained import eval_mode
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.loss_figures import RowLoss
from trainer.scoring.predict import OnProgress
from trainer.scoring.shared_rows import compute_rows
from trainer.scoring.text_targets import text_targets


def measure_rows(  # noqa: PLR0913 - a model with all that a measurement is made of
    model: Any,
    tokenizer: Any,
    items: Sequence[Example],
    *,
    kept: KeptRows | None = None,
    on_progress: OnProgress,
    peers: Peers = ALONE,
) -> list[RowLoss]:
    """Return the loss of each example, in order; nothing of the model changes.

    What is in `kept` is not computed again, and every batch that is done goes there, under the
    example's place in `items`. The ranks share the batches.

    Raises:
        DataError: an example has tokens for which the base has no embedding.
        DoesNotFit: memory does not even suffice for one example.
    """
    seq2seq = bool(model.config.is_encoder_decoder)
    id_count = model_rows(model)
    tokens = ((item.row, (*item.input_ids, *item.labels)) for item in items)
    require_embedded(tokens, id_count, tokenizer)
    codec = Codec.from_tokenizer(tokenizer, max_length=2**30, seq2seq=seq2seq)
    control = frozenset({*codec.special_tokens.values(), codec.eos_id})
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    pad_id = padding_id(tokenizer, id_count)
    device = next(model.parameters()).device

    def measure(batch: list[int]) -> dict[int, dict[str, Any]]:
        examples = [items[at] for at in batch]
        inputs = {name: one.to(device) for name, one in collate(examples, pad_id).items()}
        nats, right = (one.cpu() for one in target_losses(model, inputs))
        counts = [item.targets for item in examples]
        new: dict[int, dict[str, Any]] = {}
        parts = zip(
            batch, examples, torch.split(nats, counts), torch.split(right, counts), strict=True
        )
        for at, item, of_row, right_of_row in parts:
            text = text_targets(item, control=control, decode=decode)
            summed = of_row.double()
            new[at] = {
                "nats": _finite(summed.sum()),
                "text_nats": _finite(summed[torch.tensor(text.are_text, dtype=torch.bool)].sum()),
                "tokens": item.targets,
                "right": int(right_of_row.sum()),
                "bytes": text.bytes,
            }
        return new

    lengths = [range(len(item.input_ids) + len(item.labels) * seq2seq) for item in items]
    with eval_mode(model):
        rows = compute_rows(lengths, measure, kept=kept, on_progress=on_progress, peers=peers)
    return [RowLoss(row=item.row, **row) for item, row in zip(items, rows, strict=True)]


def _finite(total: torch.Tensor) -> float | None:
    value = total.item()
    return value if math.isfinite(value) else None
