"""Compares a kernel with the plain way on small tensors: values, gradients, and repetitions.

Every machine compares its own kernels before a run uses them: the compiler, the driver and the card
decide what a kernel computes, and none of them can be tried elsewhere.

Two measures. By elements, in roundings of their type (`find_difference`): a kernel that forgets the
last column of a row changes hardly any length. By the length of whole tensors, against a reference
in a wider type (`find_function_difference`): that suits attention, whose elements are sums over
many positions and cancel out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch

from trainer.device.determinism import Determinism
from trainer.kernels.kernel_set import Card

Outcome = Callable[[], Mapping[str, torch.Tensor]]
"""Computes some tensors anew and returns them by name."""
Function = Callable[..., torch.Tensor]
Judge = Callable[[torch.Tensor, torch.Tensor], str | None]
"""Returns in words how far a tensor is from the expected one, None if it is near enough."""

BOUNDS: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
)
"""Of the error's length over the reference's: about four steps of the arithmetic, more in 32 bits,
where the order of long sums counts."""
REPEATS = 5
"""Backward passes that add up in any order differ within a few repetitions on a busy card."""


def find_difference(
    case: str, fast: Outcome, plain: Outcome, *, bound: float, repeats: int = REPEATS
) -> str | None:
    """Return in words where an element of `fast` is further than `bound` from `plain`.

    `bound` is in steps of the type. None if there is no such element, and if each of `repeats`
    further computations of `fast` has the bits of the first, with torch refusing what has no fixed
    order; 0 where that is not wanted.
    """
    return _find(fast, plain, partial(_judge_elements, bound), of=f" of {case}", repeats=repeats)


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
    wider = torch.float64 if card.dtype is torch.float32 else torch.float32
    return _find(
        partial(_compute, fast, inputs),
        partial(_compute, plain, [_widened(one, wider) for one in inputs]),
        partial(_judge_length, BOUNDS[card.dtype] if bound is None else bound),
        repeats=REPEATS if card.exact else 0,
    )


def _find(fast: Outcome, plain: Outcome, judge: Judge, *, repeats: int, of: str = "") -> str | None:
    wanted = plain()
    with Determinism(exact=repeats > 0).enforced():
        first = {name: value.clone() for name, value in fast().items()}
        for name, expected in wanted.items():
            problem = judge(first[name], expected)
            if problem is not None:
                return f"{name}{of} {problem}"
        for _ in range(repeats):
            for name, value in fast().items():
                if not torch.equal(value.nan_to_num(), first[name].nan_to_num()):
                    return f"{name}{of} has other bits when it is computed again"
    return None


def _judge_elements(bound: float, actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    apart = difference(actual, expected)
    if apart <= bound:  # a NaN is within no bound
        return None
    return f"is {apart:.3g} roundings from the plain way, not {bound:g}"


def _judge_length(bound: float, actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    gap = relative_difference(actual, expected)
    return None if gap <= bound else f"differs from the plain way by {gap:.1e} of its length"


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far apart two tensors are, in the smallest relative step of their type.

    Each element's distance is measured against its own size plus the root mean square of all
    expected ones: small elements are held to what the large ones round to. NaN where only one of
    the two is NaN or infinite, or where shape or type differ; both infinite alike is no distance.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("nan")
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return float("nan")
    if not finite.any():
        return 0.0
    one, other = actual[finite].double(), expected[finite].double()
    size = other.abs() + other.square().mean().sqrt()
    apart = ((one - other).abs() / size.clamp_min(torch.finfo(torch.float32).tiny)).max()
    return float(apart) / torch.finfo(expected.dtype).eps


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
