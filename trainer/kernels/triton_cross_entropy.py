"""A Triton kernel of the cross-entropy of logits and its gradient: one program a row."""
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096
WARPS = 8


@triton.jit
def losses_kernel(  # noqa: PLR0913, PLR0917 - what a kernel gets is flat
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    columns: tl.constexpr,
    gradient: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write the loss of one row, and the gradient in the place of its logits.

    The sum of exponentials is kept relative to the largest logit so far, so none overflows.
    """
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(targets + row)
    wanted = tl.load(start + target).to(tl.float32)
    largest = float("-inf")
    total = 0.0
    for begin in range(0, columns, block):
        at = begin + tl.arange(0, block)
        value = tl.load(start + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(value - larger), axis=0)
        largest = larger
    logarithm = largest + tl.log(total)
    tl.store(losses + row, logarithm - wanted)
    if gradient:
        for begin in range(0, columns, block):
            at = begin + tl.arange(0, block)
            inside = at < columns
            value = tl.load(start + at, mask=inside, other=float("-inf")).to(tl.float32)
            slope = tl.exp(value - logarithm)
            slope = tl.where(at == target, slope - 1.0, slope) * scale
            tl.store(start + at, slope.to(logits.dtype.element_ty), mask=inside)


def losses(
    logits: torch.Tensor, targets: torch.Tensor, *, scale: float, gradient: bool
) -> torch.Tensor:
    """Return the loss of each row in float32; with `gradient`, replace `logits` by its gradient.

    The gradient is multiplied by `scale`, a power of two.
    """
    rows, columns = logits.shape
    found = torch.empty(rows, dtype=torch.float32, device=logits.device)
    losses_kernel[(rows,)](
        logits, targets, found, logits.stride(0), scale, columns, gradient, BLOCK, num_warps=WARPS
    )
    return found
