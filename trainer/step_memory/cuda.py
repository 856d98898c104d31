"""Lets fake tensors of a CPU take the ways of a GPU, where the two need other memory.

torch without CUDA cannot run a backward pass of fake GPU tensors, so they are of the CPU's. What
differs is then set here: which operations autocast does in float32, the kernels of attention, and
the mask of dropout. Sources: torch 2.13, `aten/src/ATen/autocast_mode.h`,
`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` and `flash_attn/flash_api.cpp`.
"""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional

LOWER = (
    "conv", "prelu", "addm", "addr", "matmul", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm",
    "chain_matmul", "linalg_vecdot", "linalg_multi_dot", "lstm_cell", "gru_cell", "rnn_",
    "_thnn_fused", "_scaled_dot_product", "scaled_dot_product", "_convolution", "cudnn",
)  # fmt: skip
"""How the names begin of operations that autocast does in 16 bits on CUDA; the CPU's does too."""
PROMOTED = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put",
    "tensordot", "scatter_add", "cat", "stack",
)  # fmt: skip
"""Operations that take the widest type of their arguments."""
FLASH_SINCE = (8, 0)
GROUPED_SINCE = (8, 0)
"""Capability from which torch multiplies by experts in one kernel."""
WIDE_HEADS = ((8, 6), (8, 9), (12, 0))
"""Cards whose flash attention has no backward pass for heads of more than 192."""
MULTIPROCESSORS = {(8, 6): 72, (8, 0): 108, (8, 9): 58, (9, 0): 132}


@contextmanager
def like_cuda(capability: tuple[int, int]) -> Iterator[None]:
    """While inside, attention, dropout and autocast on the CPU are those of a GPU."""
    from transformers.integrations import moe

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch has no types here
    for name in _in_float32():
        _register(library, name)
    enabled = torch.is_autocast_enabled
    with ExitStack() as stack:
        stack.callback(library._destroy)
        for place, name, ours in (
            (functional, "scaled_dot_product_attention", partial(_attention, capability)),
            (functional, "dropout", _dropout),
            (moe, "_can_use_grouped_mm", lambda *_: capability >= GROUPED_SINCE),
            # Without a device PEFT asks about CUDA.
            (torch, "is_autocast_enabled", lambda kind="cpu": enabled(kind)),
        ):
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, ours)
        yield


def _in_float32() -> Iterator[str]:
    """Yield the operations that autocast does in float32 on CUDA and leaves alone on a CPU."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for full in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"):
        space, _, name = full.partition("::")
        base = name.partition(".")[0]
        if space != "aten" or base.startswith(LOWER) or base in PROMOTED:
            continue
        if not has_kernel(full, "AutocastCPU"):
            yield name


def _register(library: Any, name: str) -> None:
    """Let autocast on a CPU do an operation in float32."""
    base, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, base), overload or "default")
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    typed = any(one.name == "dtype" for one in operation._schema.arguments)

    def in_float32(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            if not typed:
                return operation(*map(_widened, args), **kwargs)
            if (
                kwargs.get("dtype") is None
                and _is_half(args[0])
                and len(args) <= _untyped(operation)
            ):
                kwargs["dtype"] = torch.float32
            return operation(*args, **kwargs)

    library.impl(name, in_float32, "AutocastCPU")


def _untyped(operation: Any) -> int:
    """Return how many arguments of an operation come before the type of its result."""
    names = [one.name for one in operation._schema.arguments]
    return names.index("dtype")


def _is_half(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.dtype in {torch.float16, torch.bfloat16}


def _widened(one: Any) -> Any:
    return one.float() if _is_half(one) else one


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False  # noqa: A002, FBT001, FBT002 - torch's own names
) -> torch.Tensor:  # fmt: skip
    """Drop out as CUDA's kernel does: it keeps one byte an element, not a copy."""
    del inplace
    if not training or p == 0:
        return input
    kept: torch.Tensor = torch.native_dropout(input, p, train=True)[0]
    return kept


def _attention(  # noqa: PLR0913, PLR0917 - torch's own signature
    capability: tuple[int, int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None, enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> torch.Tensor:  # fmt: skip
    """Attend with the kernel that torch 2.13 would choose on a card of this capability."""
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        query, key, value = (one.to(lower) for one in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(lower)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    aten = torch.ops.aten
    if _flash(capability, query, key, value, attn_mask):
        return _Flash.apply(query, key, value, capability)  # type: ignore[no-any-return, no-untyped-call]
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    bf16_old = query.dtype is torch.bfloat16 and capability < FLASH_SINCE
    if not grouped and not bf16_old:
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
        return _Efficient.apply(query, key, value, attn_mask)  # type: ignore[no-any-return, no-untyped-call]
    return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _flash(
    capability: tuple[int, int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    mask: torch.Tensor | None,
) -> bool:  # fmt: skip
    """Tell whether flash attention is chosen."""
    widths = {one.shape[-1] for one in (query, key, value)}
    width = max(widths)
    if capability < FLASH_SINCE or mask is not None or len(widths) > 1 or width > 256:
        return False
    if width > 192 and capability in WIDE_HEADS and torch.is_grad_enabled():
        return False
    return _is_half(query)


def _up(count: int, to: int) -> int:
    return -(-count // to) * to


class _Flash(torch.autograd.Function):
    """What flash attention keeps, and what its backward pass needs besides the gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        capability: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        batch, heads, length, width = query.shape
        result = query.new_empty(batch, length, heads, width).transpose(1, 2)
        sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        ctx.capability = capability
        return result

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        batch, heads, length, width = query.shape
        splits = 1
        if torch.are_deterministic_algorithms_enabled():
            splits = -(-MULTIPROCESSORS.get(ctx.capability, 108) // (batch * heads))
        wide = query.new_empty(
            splits, batch, _up(length, 128), heads, _up(width, 32), dtype=torch.float32
        )
        dots = query.new_empty(batch, heads, _up(length, 128), dtype=torch.float32)
        d_query = torch.empty_like(query)
        if key.shape[1] == heads:
            d_key, d_value = torch.empty_like(key), torch.empty_like(value)
        else:  # for all heads, then summed up
            spread = [torch.empty_like(query), torch.empty_like(query)]
            d_key, d_value = torch.empty_like(key), torch.empty_like(value)
            del spread
        del wide, dots
        return d_query, d_key, d_value, None


class _Efficient(torch.autograd.Function):
    """What memory-efficient attention keeps, and its float32 sum of the queries' gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        batch, heads, length, _ = query.shape
        result = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(batch, heads, _up(length, 32), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> Any:
        query, key, value, mask, _, _ = ctx.saved_tensors
        batch, heads, length, _ = query.shape
        grads = [torch.empty_like(one) for one in (query, key, value)]
        dots = query.new_empty(batch, heads, length, dtype=torch.float32)
        wide = torch.empty_like(query, dtype=torch.float32)
        d_mask = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        del dots, wide
        return *grads, d_mask
