"""A Triton kernel of dropout whose mask is made from a seed, and so never kept."""
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trainer.kernels.plain_dropout import BLOCK, threshold

WARPS = 4


@triton.jit(do_not_specialize=["seed"])
def dropped_kernel(  # noqa: PLR0913, PLR0917 - what a kernel gets is flat
    x: tl.tensor,
    y: tl.tensor,
    seed: tl.tensor,
    count: tl.tensor,
    factor: tl.tensor,
    limit: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write four runs of `block` elements of y, one for each word of the random numbers."""
    stretch = tl.program_id(0)
    lane = tl.arange(0, block)
    words = tl.randint4x(seed, stretch * block + lane)
    start = stretch.to(tl.int64) * (4 * block)
    for word in tl.static_range(4):
        at = start + word * block + lane
        inside = at < count
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor
        kept = words[word].to(tl.uint32, bitcast=True) >= limit
        tl.store(y + at, tl.where(kept, value, 0.0).to(y.dtype.element_ty), mask=inside)


def dropped(x: torch.Tensor, seed: int, p: float) -> torch.Tensor:
    """Return x with every element dropped with probability p, the others divided by 1 - p.

    `seed` is in [2^62, 2^63): one type for all, so that one compiled kernel serves all.
    """
    values = x.contiguous()
    y = torch.empty_like(values)
    count = values.numel()
    dropped_kernel[(triton.cdiv(count, 4 * BLOCK),)](
        values, y, seed, count, 1.0 / (1.0 - p), threshold(p), BLOCK, num_warps=WARPS
    )
    return y
