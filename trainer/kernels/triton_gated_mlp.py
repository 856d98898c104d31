"""Triton kernels of SwiGLU and GeGLU: each element is computed apart, so no sum has an order."""
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from trainer.kernels.gated_mlp import GELU_CUBIC, GELU_FACTOR, GatedOps

BLOCK = 1024
WARPS = 4
FACTOR = tl.constexpr(GELU_FACTOR)
CUBIC = tl.constexpr(GELU_CUBIC)


@triton.jit
def forward_kernel(  # noqa: PLR0913, PLR0917 - what a kernel gets is flat
    gate: tl.tensor,
    up: tl.tensor,
    h: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    columns: tl.tensor,
    gelu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a block of one row of h."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < columns
    value = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    argument = value
    if gelu:
        argument = FACTOR * value * (1.0 + CUBIC * value * value)
    activated = (value / (1.0 + tl.exp(-argument))).to(h.dtype.element_ty).to(tl.float32)
    tl.store(h + row * columns + at, (activated * factor).to(h.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(  # noqa: PLR0913, PLR0917 - likewise
    dh: tl.tensor,
    gate: tl.tensor,
    up: tl.tensor,
    d_gate: tl.tensor,
    d_up: tl.tensor,
    dh_stride: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    d_gate_stride: tl.tensor,
    d_up_stride: tl.tensor,
    columns: tl.tensor,
    gelu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a block of one row of both gradients."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < columns
    kind = d_gate.dtype.element_ty
    outer = tl.load(dh + row * dh_stride + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    argument = value
    if gelu:
        argument = FACTOR * value * (1.0 + CUBIC * value * value)
    sigmoid = 1.0 / (1.0 + tl.exp(-argument))
    activated = (value * sigmoid).to(kind).to(tl.float32)
    inner = (outer * factor).to(kind).to(tl.float32)
    tl.store(d_up + row * d_up_stride + at, (outer * activated).to(kind), mask=inside)
    rise = value / (1.0 + tl.exp(argument))
    if gelu:
        rise = rise * FACTOR * (1.0 + 3.0 * CUBIC * value * value)
    slope = inner * sigmoid * (1.0 + rise)
    tl.store(d_gate + row * d_gate_stride + at, slope.to(kind), mask=inside)


def ops(*, gelu: bool) -> GatedOps:
    """Return both passes with SiLU, or with GELU's tanh form."""
    return GatedOps(forward=partial(forward, gelu=gelu), backward=partial(backward, gelu=gelu))


def forward(gate: torch.Tensor, up: torch.Tensor, *, gelu: bool) -> torch.Tensor:
    """Return h of gate and up [rows, columns], whose rows may lie apart."""
    rows, columns = gate.shape
    h = torch.empty(rows, columns, dtype=gate.dtype, device=gate.device)
    forward_kernel[(rows, triton.cdiv(columns, BLOCK))](
        gate, up, h, gate.stride(0), up.stride(0), columns, gelu, BLOCK, num_warps=WARPS
    )
    return h


def backward(  # noqa: PLR0913 - likewise
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    d_gate: torch.Tensor,
    d_up: torch.Tensor,
    *,
    gelu: bool,
) -> None:
    """Write the gradients of gate and up into the last two; rows of all may lie apart."""
    rows, columns = gate.shape
    tensors = (dh, gate, up, d_gate, d_up)
    strides = [one.stride(0) for one in tensors]
    backward_kernel[(rows, triton.cdiv(columns, BLOCK))](
        *tensors, *strides, columns, gelu, BLOCK, num_warps=WARPS
    )
