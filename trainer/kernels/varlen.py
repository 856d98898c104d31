"""Attention over rows that lie one behind the other, without padding; no row sees another.

A batch is one long row of all tokens with positions that begin anew, and bounds say where each row
begins (`trainer/data/packed.py`). On a card torch's `varlen_attn` reads that; elsewhere,
and as its reference, every row is computed by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from trainer.data.packed import ROWS, RowBounds
from trainer.kernels.attention import (
    FLASH,
    GROUPED_HEAD_DIM_MAX,
    HEAD_DIMS,
    HEADS,
    KEY_HEADS,
    attend_causally,
    plain_attention,
)
from trainer.kernels.attention_use import AttentionUse, observe_attention, using
from trainer.kernels.kernel_set import Card
from trainer.kernels.prove import find_difference, fixed_values

ROW_LENGTHS = (17, 300, 1, 64)
"""Lengths of the rows of a proof."""
HEAD_DIM_STEP = 8


PackedFunction = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, RowBounds, float | None], torch.Tensor
]
"""Returns causal attention within rows of q, k, v [heads, tokens, head_dim], scaled."""


class PackedAttention:
    """Attention of rows without padding, for every layer that calls transformers' function."""

    name = "attention"
    masked = False
    packed = True
    implementation = "qft_packed"

    def __init__(self, *, longest: int, on_card: bool = True) -> None:
        """Take the length of the longest row there may be, and whether a card computes."""
        self._longest = longest
        self._attend: PackedFunction = attend_in_one if on_card else attend_row_by_row
        self._use = AttentionUse()
        self._bounds: RowBounds | None = None
        self.version = "varlen-1" if on_card else "row-by-row-1"

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why rows of this base cannot lie one behind the other, or not on this card."""
        on_card = self._attend is attend_in_one
        if on_card and (card.capability is None or card.capability < FLASH):
            return "it needs a card of compute capability 8.0"
        if on_card and card.dtype not in {torch.float16, torch.bfloat16}:
            return "it needs 16-bit arithmetic"
        if on_card and _varlen_arguments() is None:
            return "this torch has no `varlen_attn` that computes causal attention"
        self._use = use = observe_attention(model, card)
        if use.problem is not None:
            return use.problem
        every = model.config.get_text_config().num_hidden_layers
        if use.layers != every:
            return f"{use.layers} of {every} layers are attention; a state may pass from row to row"
        if use.dropout:
            return f"it has no dropout, and attention of this base has one of {use.dropout:g}"
        if use.window is not None and use.window < self._longest:
            return f"rows may be longer than a window of {use.window} tokens"
        odd = [dims for dims in sorted(use.head_dims) if not _fits(*dims)]
        if on_card and odd:
            return f"it has no kernel for heads of {odd[0][0]} and {odd[0][1]}"
        return None

    def prove(self, card: Card) -> str | None:
        """Compare with each row alone, and change one row: no bit of another may change."""
        ends = torch.tensor([0, *ROW_LENGTHS]).cumsum(0).to(device=card.device, dtype=torch.int32)
        bounds = RowBounds(cu_seqlens=ends, longest=max(ROW_LENGTHS))

        def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self._attend(q, k, v, bounds, None)

        def alone(*tensors: torch.Tensor) -> torch.Tensor:
            rows = zip(
                *(torch.split(one, list(ROW_LENGTHS), dim=1) for one in tensors), strict=True
            )
            return torch.cat([plain_attention(*(t[None] for t in row))[0] for row in rows], dim=1)

        for head_dim in HEAD_DIMS:
            inputs = [
                fixed_values(heads, sum(ROW_LENGTHS), head_dim, card=card, seed=seed)
                for seed, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS))
            ]
            problem = find_difference(packed, alone, inputs, card=card)
            if problem is not None:
                return f"{problem} (heads of {head_dim})"
            with torch.no_grad():
                first = packed(*inputs)[:, : ROW_LENGTHS[0]]
                changed = [
                    torch.cat((t[:, : ROW_LENGTHS[0]], -t[:, ROW_LENGTHS[0] :]), dim=1)
                    for t in inputs
                ]
                if not torch.equal(packed(*changed)[:, : ROW_LENGTHS[0]], first):
                    return f"a row changes with its neighbours (heads of {head_dim})"
        return None

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Return how many layers call the function."""
        return self._use.layers

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Let the layers call it for the rows of `batch`, which must be packed."""
        from transformers import AttentionInterface

        self._bounds = batch[ROWS]
        AttentionInterface.register(self.implementation, self._attend_layer)
        try:
            with using(self._use.configs, self.implementation):
                yield
        finally:
            self._bounds = None

    def _attend_layer(
        self,
        _module: Any,
        *tensors: torch.Tensor | None,
        scaling: float | None = None,
        **_more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute a layer's attention, from and to transformers' shapes."""
        query, key, value = (one[0] for one in tensors[:3] if one is not None)
        if self._bounds is None:
            raise RuntimeError("packed attention was called outside of its passes")
        found = self._attend(query, key, value, self._bounds, scaling)
        return found.transpose(0, 1)[None], None


def attend_row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: RowBounds,
    scale: float | None,
) -> torch.Tensor:
    """Compute each row by itself: the reference, and what a processor has."""
    ends: list[int] = bounds.cu_seqlens.tolist()
    lengths = [end - begin for begin, end in pairwise(ends)]
    rows = zip(
        *(torch.split(one[None], lengths, dim=2) for one in (query, key, value)), strict=True
    )
    return torch.cat([attend_causally(*row, scale=scale)[0] for row in rows], dim=1)


def attend_in_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: RowBounds,
    scale: float | None,
) -> torch.Tensor:
    """Compute all rows in one kernel; in parts that do not depend on how many rows there are."""
    from torch.nn.attention.varlen import varlen_attn

    arguments = _varlen_arguments()
    if arguments is None:
        raise RuntimeError("this torch has no `varlen_attn` that computes causal attention")
    more = dict(arguments)
    groups = query.shape[0] // key.shape[0]
    if groups > 1 and "enable_gqa" not in more:
        key, value = (one.repeat_interleave(groups, dim=0) for one in (key, value))
    if "scale" in more:
        more["scale"] = scale
    elif scale is not None:  # this version knows 1 / sqrt(head_dim) only
        query = query * (scale * query.shape[-1] ** 0.5)
    ends, longest = bounds.cu_seqlens, bounds.longest
    query, key, value = (one.transpose(0, 1).contiguous() for one in (query, key, value))
    found = varlen_attn(query, key, value, ends, ends, longest, longest, **more)
    if not isinstance(found, torch.Tensor):
        raise TypeError("`varlen_attn` returned more than the values")
    return found.transpose(0, 1)


@cache
def _varlen_arguments() -> Mapping[str, Any] | None:
    """Return what makes this torch's `varlen_attn` causal, None if nothing does.

    torch 2.10 takes `is_causal`, 2.13 a window; what else is wanted is given where it is known.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    accepted = inspect.signature(varlen_attn).parameters
    more = {"enable_gqa": True, "num_splits": 1, "scale": None}
    wanted = {name: value for name, value in more.items() if name in accepted}
    if "window_size" in accepted:
        return {**wanted, "window_size": (-1, 0)}
    return {**wanted, "is_causal": True} if "is_causal" in accepted else None


def _fits(key_dim: int, value_dim: int) -> bool:
    """Tell whether flash attention has a kernel for heads of these sizes."""
    return key_dim == value_dim <= GROUPED_HEAD_DIM_MAX and key_dim % HEAD_DIM_STEP == 0
