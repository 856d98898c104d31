"""Triton kernels of RMSNorm: one program a row, sums in a fixed order, no autotuning."""
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trainer.kernels.plain_rms_norm import Form


@triton.jit
def forward_kernel(  # noqa: PLR0913, PLR0917 - what a kernel gets is flat
    x: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    columns: tl.tensor,
    eps: tl.tensor,
    rounded: tl.constexpr,
    offset: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write y and 1/sqrt(mean(x²) + eps) of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    value = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / columns + eps)
    normed = value * inverse
    if rounded:
        normed = normed.to(x.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    tl.store(y + row * columns + at, (normed * factor).to(y.dtype.element_ty), mask=inside)
    tl.store(scale + row, inverse)


@triton.jit
def backward_kernel(  # noqa: PLR0913, PLR0917 - likewise
    dy: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    dx: tl.tensor,
    columns: tl.tensor,
    rounded: tl.constexpr,
    offset: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write dx of one row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < columns
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + offset
    inner = tl.load(dy + row * columns + at, mask=inside, other=0.0).to(tl.float32) * factor
    if rounded:
        inner = inner.to(dx.dtype.element_ty).to(tl.float32)
    inverse = tl.load(scale + row)
    normed = tl.load(x + row * columns + at, mask=inside, other=0.0).to(tl.float32) * inverse
    mean = tl.sum(inner * normed, axis=0) / columns
    gradient = inverse * (inner - normed * mean)
    tl.store(dx + row * columns + at, gradient.to(dx.dtype.element_ty), mask=inside)


def forward(x: torch.Tensor, weight: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and 1/sqrt(mean(x²) + eps) [rows] of x [rows, columns], contiguous."""
    rows, columns = x.shape
    y = torch.empty_like(x)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block, warps = launch_size(columns)
    forward_kernel[(rows,)](
        x, weight, y, scale, columns, form.eps, form.rounded, form.offset, block, num_warps=warps
    )
    return y, scale


def backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, form: Form
) -> torch.Tensor:
    """Return dx of x [rows, columns]; all are contiguous."""
    rows, columns = x.shape
    dx = torch.empty_like(x)
    block, warps = launch_size(columns)
    backward_kernel[(rows,)](
        dy, x, weight, scale, dx, columns, form.rounded, form.offset, block, num_warps=warps
    )
    return dx


def launch_size(columns: int) -> tuple[int, int]:
    """Return the power of two that holds a row, and the warps that share it."""
    block = 1 << (columns - 1).bit_length()
    return block, min(16, max(1, block // 512))
