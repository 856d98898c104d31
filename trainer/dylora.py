"""DyLoRA: one run trains every rank up to r, and each can be cut out as a plain LoRA adapter.

Every step draws a rank b and trains with A[:b] and B[:, :b], scaled by alpha/b as a LoRA of that
rank is (Valipour et al., 2023; QDyLoRA is the same on a quantised base). The draw depends on seed
and step only, so that an interrupted run draws what it would have drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.config import MethodTable
from trainer.data import Example, collate
from trainer.plan import ordinal
from trainer.supervised import supervised_loss

RANKS = "ranks.json"
ALL_UP_TO = 16  # ranks beyond it are compared at powers of two only


class Dial:
    """Sets the rank at which the LoRA layers of a model work: drawn in training, else `chosen`."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        self.r = method.r
        self.alpha = method.alpha
        self.drawn = method.r
        self.chosen = method.r
        self.losses: dict[int, float] | None = None
        self._model = model
        self._seed = seed
        self._masks: dict[tuple[int, torch.device], torch.Tensor] = {}
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                module.lora_A["default"].register_forward_hook(self._cut)

    def begin(self, step: int) -> None:
        """Draw the rank of `step`."""
        self.drawn = draw_rank(self._seed, step, self.r)

    def gather(self) -> None:
        """The gradients are where they belong; those beyond the drawn rank are zero."""

    def settle(self) -> None:
        """Outside training the model works at the chosen rank, whatever was drawn last."""

    def save(self, directory: Path) -> None:
        """Write the adapter of rank r in PEFT's format, and the table of ranks beside it."""
        self._model.save_pretrained(str(directory), save_embedding_layers=False)
        table = {
            "version": 1,
            "r": self.r,
            "alpha": self.alpha,
            "losses": None if self.losses is None else {str(b): x for b, x in self.losses.items()},
            "best": self.best,
        }
        (directory / RANKS).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    @property
    def best(self) -> int:
        """The rank of the lowest validation loss, the smaller of equals; r if none was measured."""
        if not self.losses:
            return self.r
        return min(self.losses, key=lambda b: (self.losses or {})[b])

    @contextmanager
    def at(self, rank: int) -> Iterator[None]:
        """Let the model, while it is not in training mode, work at `rank` inside."""
        before, self.chosen = self.chosen, rank
        try:
            yield
        finally:
            self.chosen = before

    def _cut(self, module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Keep the first b of r outputs of A, times r/b: PEFT scales by alpha/r, b needs alpha/b.

        The factor stays float32: in bfloat16 it would be off by up to 0.4 % in one direction.
        """
        rank = self.drawn if module.training else self.chosen
        if rank == self.r:
            return output
        key = (rank, output.device)
        if key not in self._masks:
            mask = torch.zeros(self.r, device=output.device)
            mask[:rank] = self.r / rank
            self._masks[key] = mask
        return output * self._masks[key]


def draw_rank(seed: int, step: int, r: int) -> int:
    """Return the rank of a step, 1 to r, each about equally often, from seed and step alone."""
    return 1 + ordinal(seed, "rank", step) % r


def ranks_to_compare(r: int) -> tuple[int, ...]:
    """Return every rank up to r, or from `ALL_UP_TO` on the powers of two and r."""
    if r <= ALL_UP_TO:
        return tuple(range(1, r + 1))
    powers = [1 << at for at in range(r.bit_length()) if 1 << at < r]
    return (*powers, r)


def compare_ranks(
    model: Any,
    examples: Sequence[Example],
    *,
    pad_id: int,
    portion: int,
    beat: Callable[[int, int], None],
) -> dict[int, float]:
    """Return the mean loss (nats per target token) of a DyLoRA model on `examples` at each rank.

    `portion` rows go through the model at once; `beat` hears of ranks done and in all, and may
    raise. The model's mode is left as it was.
    """
    dial: Dial = model.qft_method
    ranks = ranks_to_compare(dial.r)
    was_training = model.training
    model.eval()
    losses: dict[int, float] = {}
    try:
        for done, rank in enumerate(ranks):
            beat(done, len(ranks))
            with dial.at(rank):
                losses[rank] = mean_loss(model, examples, pad_id=pad_id, portion=portion)
    finally:
        model.train(was_training)
    return losses


def mean_loss(model: Any, examples: Sequence[Example], *, pad_id: int, portion: int) -> float:
    """Return the mean loss over all target tokens of `examples` (nats), in the model's mode."""
    order = sorted(examples, key=lambda example: -len(example.input_ids))
    total, targets = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(order), portion):
            inputs = collate(order[start : start + portion], pad_id)
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            total += supervised_loss(model, inputs).item()
            targets += sum(x >= 0 for e in order[start : start + portion] for x in e.labels)
    return total / max(1, targets)
