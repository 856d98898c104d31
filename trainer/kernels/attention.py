"""Attention without a mask: rows are padded on the right, and no token sees what comes after it.

With a mask torch never takes its flash kernel, and repeats keys and values for grouped heads. What
padded positions compute is never learnt from; only their places in the sums differ, so the bits of
a step are others than with a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from trainer.kernels.attention_use import AttentionUse, observe_attention, using
from trainer.kernels.equality import find_function_difference, fixed_values
from trainer.kernels.kernel_set import Card

FLASH = (8, 0)
"""From this capability on, torch has flash attention, which takes grouped heads."""
GROUPED_HEAD_DIM_MAX = 256
LENGTHS = (2, 17, 300)
"""Of rows in a proof: hardly any tokens, less than a tile, several tiles."""
WINDOW = 9
HEAD_DIMS = (64, 128)
HEADS, KEY_HEADS = 4, 2


class UnmaskedAttention:
    """Causal SDPA without a mask for every layer that calls transformers' attention function."""

    name = "attention"
    version = "sdpa-unmasked-1"
    masked = False
    packed = False
    implementation = "qft_unmasked"

    def __init__(self) -> None:
        self._use = AttentionUse()
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return what of the base's attention needs a mask."""
        self._use = observe_attention(model, card)
        return self._use.problem

    def prove(self, card: Card) -> str | None:
        """Compare with attention written out, under the mask that padding would need."""
        cases = [(head_dim, n, w) for head_dim in HEAD_DIMS for n in LENGTHS for w in (n, WINDOW)]
        for head_dim, length, window in cases:
            inputs = [
                fixed_values(2, heads, length, head_dim, card=card, seed=seed)
                for seed, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS))
            ]
            mask = window_mask(length, window, card.device) if window < length else None
            fast, plain = (
                partial(attend_causally, mask=mask),
                partial(plain_attention, window=window),
            )
            problem = find_function_difference(fast, plain, inputs, card=card)
            if problem is not None:
                return f"{problem} ({length} tokens, of which each sees {window}, {head_dim} wide)"
        return None

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Return how many layers call the function."""
        return self._use.layers

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Let the layers call it, but not for rows that only a mask of the base's own is for."""
        chunk = self._use.chunk
        if chunk is not None and batch["input_ids"].shape[-1] > chunk:
            yield
            return
        from transformers import AttentionInterface

        AttentionInterface.register(self.implementation, self._attend_layer)
        try:
            with using(self._use.configs, self.implementation):
                yield
        finally:
            self._masks.clear()

    def _attend_layer(
        self,
        module: Any,
        *tensors: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        **_more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute a layer's attention, from and to transformers' shapes."""
        query, key, value = tensors[:3]
        length, window = query.shape[2], self._use.windows.get(id(module))
        mask = None
        if window is not None and length > window:
            if (length, window) not in self._masks:
                self._masks[length, window] = window_mask(length, window, query.device)
            mask = self._masks[length, window]
        found = attend_causally(query, key, value, mask=mask, dropout=dropout, scale=scaling)
        return found.transpose(1, 2).contiguous(), None


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which tokens each of `length` sees: itself and those before it, `window` in all."""
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril() & every.triu(1 - window)


def attend_causally(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """Return causal attention of [batch, heads, tokens, head_dim]; keys may have fewer heads.

    A `mask` [tokens, tokens] replaces the causal one, at the price of the fastest kernels. `more`
    are the `dropout` and the `scale` of the layer.
    """
    dropout = more.get("dropout", 0.0)
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and mask is None and _takes_grouped_heads(query, key, value, dropout)
    if groups > 1 and not grouped:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    found: torch.Tensor = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=more.get("scale"),
        enable_gqa=grouped,
    )
    return found


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    """Return causal attention as its definition has it: softmax(q k^T / sqrt(d) + mask) v."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    length = scores.shape[-1]
    seen = window_mask(length, window or length, scores.device)
    weights: torch.Tensor = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return weights @ value


def _takes_grouped_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
) -> bool:
    """Tell whether torch has a fast kernel for these that reads each key once.

    Without one it would take the plain kernel, whose scores need length x length numbers a head.
    """
    if query.device.type != "cuda" or not key.shape[-1] == value.shape[-1] <= GROUPED_HEAD_DIM_MAX:
        return False
    if torch.cuda.get_device_capability(query.device) >= FLASH and query.element_size() == 2:
        return True
    params = torch.backends.cuda.SDPAParams(query, key, value, None, dropout, True, True)
    return bool(torch.backends.cuda.can_use_efficient_attention(params, debug=False))
