"""Attention over rows that lie one behind the other, without padding; no row sees another.

A batch is one long row of all tokens with positions that begin anew, and bounds say where each row
begins (`trainer/data/packed.py`). On a card torch's `varlen_attn` reads that; elsewhere,
and as its reference, every row is computed by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
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
    WINDOW,
    attend_causally,
    plain_attention,
    window_mask,
)
from trainer.kernels.attention_use import AttentionUse, observe_attention, using
from trainer.kernels.equality import find_function_difference, fixed_values
from trainer.kernels.kernel_set import Card

ROW_LENGTHS = (17, 300, 1, 64)
"""Lengths of the rows of a proof."""
HEAD_DIM_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What attention of packed rows is computed by, beside queries, keys and values."""

    bounds: RowBounds
    scale: float | None = None
    window: int | None = None


PackedFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Request], torch.Tensor]
"""Returns causal attention within rows of q, k, v [heads, tokens, head_dim]."""


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
        if use.chunk is not None and use.chunk < self._longest:
            return f"rows may be longer than a chunk of {use.chunk} tokens, which its masks are for"
        short = min(use.windows.values(), default=self._longest)
        if on_card and short < self._longest and not _takes_windows():
            return f"rows may be longer than a window of {short} tokens, which needs torch 2.11"
        odd = [dims for dims in sorted(use.head_dims) if not _fits(*dims)]
        if on_card and odd:
            return f"it has no kernel for heads of {odd[0][0]} and {odd[0][1]}"
        return None

    def prove(self, card: Card) -> str | None:
        """Compare with each row alone, and change one row: no bit of another may change."""
        for head_dim in HEAD_DIMS:
            inputs = [
                fixed_values(heads, sum(ROW_LENGTHS), head_dim, card=card, seed=seed)
                for seed, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS))
            ]
            for window in (None, WINDOW):
                if window is None or self._attend is attend_row_by_row or _takes_windows():
                    problem = self._find_problem(inputs, window, card)
                    if problem is not None:
                        return f"{problem} (heads of {head_dim})"
        return None

    def _find_problem(
        self, inputs: list[torch.Tensor], window: int | None, card: Card
    ) -> str | None:
        """Return what differs from each row alone, None if nothing does."""
        ends = torch.tensor([0, *ROW_LENGTHS]).cumsum(0).to(device=card.device, dtype=torch.int32)
        bounds = RowBounds(cu_seqlens=ends, longest=max(ROW_LENGTHS))
        packed = partial(self._attend_packed, Request(bounds=bounds, window=window))

        def alone(*tensors: torch.Tensor) -> torch.Tensor:
            rows = zip(*(torch.split(t, list(ROW_LENGTHS), dim=1) for t in tensors), strict=True)
            each = [plain_attention(q[None], k[None], v[None], window) for q, k, v in rows]
            return torch.cat(each, dim=2)[0]

        problem = find_function_difference(packed, alone, inputs, card=card)
        if problem is not None:
            return problem
        first = ROW_LENGTHS[0]
        with torch.no_grad():
            before = packed(*inputs)[:, :first]
            changed = [torch.cat((t[:, :first], -t[:, first:]), dim=1) for t in inputs]
            if not torch.equal(packed(*changed)[:, :first], before):
                return "a row changes with its neighbours"
        return None

    def _attend_packed(self, request: Request, *tensors: torch.Tensor) -> torch.Tensor:
        query, key, value = tensors
        return self._attend(query, key, value, request)

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
        self, module: Any, *tensors: Any, scaling: float | None = None, **_more: Any
    ) -> tuple[torch.Tensor, None]:
        """Compute a layer's attention, from and to transformers' shapes."""
        if self._bounds is None:
            raise RuntimeError("packed attention was called outside of its passes")
        window = self._use.windows.get(id(module))
        request = Request(bounds=self._bounds, scale=scaling, window=window)
        found = self._attend_packed(request, *(_in_autocast(one[0]) for one in tensors[:3]))
        return found.transpose(0, 1)[None], None


def attend_row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, request: Request
) -> torch.Tensor:
    """Compute each row by itself: the reference, and what a processor has."""
    ends: list[int] = request.bounds.cu_seqlens.tolist()
    lengths = [end - begin for begin, end in pairwise(ends)]
    found = []
    rows = zip(
        *(torch.split(one[None], lengths, dim=2) for one in (query, key, value)), strict=True
    )
    for row, length in zip(rows, lengths, strict=True):
        is_longer = request.window is not None and length > request.window
        mask = window_mask(length, request.window or length, query.device) if is_longer else None
        found.append(attend_causally(*row, mask=mask, scale=request.scale)[0])
    return torch.cat(found, dim=1)


def attend_in_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, request: Request
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
        more["scale"] = request.scale
    elif request.scale is not None:  # this version scales by 1 / sqrt(head_dim) only
        query = query * (request.scale * query.shape[-1] ** 0.5)
    if request.window is not None and "window_size" in more:  # so many before the token itself
        more["window_size"] = (request.window - 1, 0)
    ends, longest = request.bounds.cu_seqlens, request.bounds.longest
    query, key, value = (one.transpose(0, 1).contiguous() for one in (query, key, value))
    found = varlen_attn(query, key, value, ends, ends, longest, longest, **more)
    if not isinstance(found, torch.Tensor):
        raise TypeError("`varlen_attn` returned more than the values")
    return found.transpose(0, 1)


def _in_autocast(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the type of autocast, as SDPA takes it; a custom operation does not."""
    device = value.device.type
    if not torch.is_autocast_enabled(device):
        return value
    return value.to(torch.get_autocast_dtype(device))


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


def _takes_windows() -> bool:
    """Tell whether a layer may see the last tokens only."""
    return "window_size" in (_varlen_arguments() or {})


def _fits(key_dim: int, value_dim: int) -> bool:
    """Tell whether flash attention has a kernel for heads of these sizes."""
    return key_dim == value_dim <= GROUPED_HEAD_DIM_MAX and key_dim % HEAD_DIM_STEP == 0
