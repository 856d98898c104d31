"""Compares a kernel with the plain way on small tensors: values, gradients, and repetitions.

Every machine examines its own kernels before a run uses them: the compiler, the driver and the card
decide what a kernel computes, and none of them can be tried elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from trainer.device.determinism import Determinism
from trainer.kernels.kernel_set import Card

Function = Callable[..., torch.Tensor]

BOUNDS: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)
"""Of the error's length over the reference's: about four steps of the arithmetic, more in 32 bits,
where the order of long sums counts."""
REPEATS = 5
"""Backward passes that add up in any order differ within a few repetitions on a busy card."""


def find_function_difference(
    fast: Function,
    plain: Function,
    inputs: Sequence[torch.Tensor],
    *,
    card: Card,
    bound: float | None = None,
) -> str | None:
    """Return what differs between two functions that return one tensor, None if nothing does.

    `plain` is computed in float32 (in float64 if the inputs are float32), and `fast` as the inputs
    are. The value, and the gradient of each input with `requires_grad`, may be away from it by
    `bound`, a share of its length: without one, `BOUNDS` of `card.dtype`. If `card.exact`, `fast`
    is repeated and must give the same bits, with torch refusing what has no fixed order.
    """
    limit = BOUNDS[card.dtype] if bound is None else bound
    wider = torch.float64 if card.dtype is torch.float32 else torch.float32
    expected = _compute(plain, [_widened(one, wider) for one in inputs])
    with Determinism(exact=card.exact).enforced():
        found = _compute(fast, inputs)
        for name, value in found.items():
            gap = relative_difference(value, expected[name])
            if not gap <= limit:  # nor is a NaN within any bound
                return f"{name} differs from the plain way by {gap:.1e} of its length"
        for _ in range(REPEATS if card.exact else 0):
            again = _compute(fast, inputs)
            for name, value in found.items():
                if not torch.equal(again[name], value):
                    return f"{name} has other bits when it is computed again"
    return None


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the length of the difference over the length of the reference; NaN if one has any."""
    if value.shape != reference.shape:
        return float("nan")
    wide = reference.double()
    length = wide.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((value.double() - wide).norm() / length)


def fixed_values(*shape: int, card: Card, seed: int, requires_grad: bool = True) -> torch.Tensor:
    """Return normally distributed numbers, the same everywhere, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator)
    return drawn.to(device=card.device, dtype=card.dtype).requires_grad_(requires_grad)


def _widened(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


def _compute(function: Function, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the value, and the gradients with respect to inputs, by name."""
    wanted = [number for number, one in enumerate(inputs) if one.requires_grad]
    with torch.enable_grad():
        value = function(*inputs)
        direction = torch.linspace(-1, 1, value.numel(), device=value.device).sin()
        gradients = torch.autograd.grad(
            value,
            [inputs[number] for number in wanted],
            direction.view(value.shape).to(value.dtype),
        )
    named = {f"the gradient of input {n}": one for n, one in zip(wanted, gradients, strict=True)}
    return {"the value": value.detach(), **named}
