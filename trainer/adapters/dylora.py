"""DyLoRA: one run trains every rank up to r, and each can be cut out as a plain LoRA adapter.

Every step draws a rank b and trains with A[:b] and B[:, :b] (Valipour et al., 2023; QDyLoRA is the
same on a quantised base). Unlike there, column i counts alpha/i at every rank, so that a higher
rank adds to a lower one and does not shrink it: measured much better (docs/benchmarks.md). The
draw depends on seed and step only, so that an interrupted run draws what it would have drawn.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.adapter_method import AdapterMethod
from trainer.adapters.settings import (
    BYTES_MAX,
    CONFIG,
    RANK_MAX,
    RANKS,
    TENSORS,
    load_tensors,
)
from trainer.errors import ConfigError
from trainer.method_table import MethodTable
from trainer.schedule import derive_seed
from trainer.untrusted import NotPlain, parse, table, whole

WHOLE = "ranks.safetensors"  # A and B of rank r, of which every lower rank is a part
VERSION = 2  # of `RANKS`; in 1 the columns of a rank were scaled alike
ALL_UP_TO = 16  # ranks beyond it are compared at powers of two only
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: multiples of it spread evenly


class DyLora(AdapterMethod):
    """Sets the rank at which the LoRA layers of a model work: drawn in training, else `chosen`."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        super().__init__(model, method=method, seed=seed)
        self.r = method.r
        self.alpha = method.alpha
        self.drawn = method.r
        self.chosen = method.r
        self.losses: dict[int, float] | None = None
        self._masks: dict[tuple[int, torch.device], torch.Tensor] = {}
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                module.lora_A["default"].register_forward_hook(self._cut)

    def before_step(self, step: int) -> None:
        """Draw the rank of `step`."""
        self.drawn = draw_rank(self._seed, step, self.r)

    def choose(self, losses: dict[int, float]) -> None:
        """Record the validation loss of every rank, and work at the best from now on."""
        self.losses = losses
        self.chosen = self.best

    def save(self, directory: Path) -> None:
        """Write a plain LoRA of the best rank, as PEFT does, and beside it all ranks together."""
        from safetensors.torch import load_file, save_file

        super().save(directory)
        every_rank = load_file(directory / TENSORS)
        save_file(every_rank, directory / WHOLE, metadata={"format": "pt"})
        save_file(cut(every_rank, self.best), directory / TENSORS, metadata={"format": "pt"})
        settings = json.loads((directory / CONFIG).read_text(encoding="utf-8")) | {"r": self.best}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")
        facts = {
            "version": VERSION,
            "r": self.r,
            "alpha": self.alpha,
            "losses": None if self.losses is None else {str(b): x for b, x in self.losses.items()},
            "best": self.best,
        }
        (directory / RANKS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

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
        """Keep the first b of r outputs of A, the i-th times r/i: PEFT's alpha/r becomes alpha/i.

        The factors stay float32: in bfloat16 they would be off by up to 0.4 % in one direction.
        """
        rank = self.drawn if module.training else self.chosen
        key = (rank, output.device)
        if key not in self._masks:
            mask = torch.zeros(self.r, device=output.device)
            mask[:rank] = self.r / torch.arange(1, rank + 1)
            self._masks[key] = mask
        return output * self._masks[key]


def cut(tensors: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Return A[:rank] and B[:, :rank] of every layer, under the names they have in the file.

    Column i of B is multiplied by rank/i: a plain LoRA scales all of them by alpha/rank.
    """
    factors = rank / torch.arange(1, rank + 1)
    parts: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            parts[name] = tensor[:rank].contiguous()
        elif ".lora_B." in name:
            parts[name] = (tensor[:, :rank] * factors.to(tensor)).contiguous()
        else:  # a module that is trained whole
            parts[name] = tensor
    return parts


def lora_tensors(directory: Path, rank: int | None) -> dict[str, torch.Tensor]:
    """Return the LoRA of `rank` in a saved DyLoRA adapter, or that of the best rank.

    Raises:
        ConfigError: it has no such rank, or its columns count otherwise.
    """
    path = directory / RANKS
    try:
        facts = table(parse(path.read_bytes(), bytes_max=BYTES_MAX))
    except (OSError, NotPlain) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    if facts.get("version") != VERSION:
        raise ConfigError([f"{path} is of another qft; use the one that trained it"])
    r, best = (whole(facts.get(key), most=RANK_MAX) for key in ("r", "best"))
    if r is None:
        raise ConfigError([f"{path} tells no rank"])
    wanted = rank or best or 0
    if not 1 <= wanted <= r:
        raise ConfigError([f"--rank: {wanted} is not one of 1 to {r}"])
    return cut(load_tensors(directory / WHOLE), wanted)


def draw_rank(seed: int, step: int, r: int) -> int:
    """Return the rank of a step, 1 to r, from seed and step alone.

    Rank b comes in proportion to 1/sqrt(b): what lower ranks learn, higher ones have, too. A Weyl
    sequence with the golden ratio draws it, so that every stretch of steps has its share of each.
    """
    at = (derive_seed(seed, "rank") + step * GOLDEN) % (1 << 64)
    ends = list(accumulate(1 / math.sqrt(rank) for rank in range(1, r + 1)))
    return min(1 + bisect_right(ends, at / (1 << 64) * ends[-1]), r)


def ranks_to_compare(r: int) -> tuple[int, ...]:
    """Return every rank up to r, or from `ALL_UP_TO` on the powers of two and r."""
    if r <= ALL_UP_TO:
        return tuple(range(1, r + 1))
    doublings = [1 << at for at in range(r.bit_length()) if 1 << at < r]
    return (*doublings, r)


def compare_ranks(
    model: Any, measure: Callable[[], float], *, on_progress: Callable[[int, int], None]
) -> dict[int, float]:
    """Return what `measure` says of a DyLoRA model in eval mode at each rank.

    `on_progress` is called with the ranks done and in all, and may raise. The model's mode is left
    as it was.
    """
    dylora: DyLora = model.qft_method
    ranks = ranks_to_compare(dylora.r)
    was_training = model.training
    model.eval()
    losses: dict[int, float] = {}
    try:
        for done, rank in enumerate(ranks):
            on_progress(done, len(ranks))
            with dylora.at(rank):
                losses[rank] = measure()
    finally:
        model.train(was_training)
    return losses
