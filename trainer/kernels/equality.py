"""Compares two ways to compute the same tensors, element by element, in roundings of their type.

`prove.py` compares the lengths of whole tensors, which suits sums over many positions. A kernel
that forgets the last column of a row changes hardly any length, so here each element counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Outcome = Callable[[], Mapping[str, torch.Tensor]]
"""Computes some tensors anew and returns them by name."""

REPEATS = 3


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


def find_difference(
    case: str, fast: Outcome, plain: Outcome, *, bound: float, repeats: int = REPEATS
) -> str | None:
    """Return in words where `fast` is further than `bound` from `plain`, None if nowhere.

    `bound` is in steps of the type. `fast` is computed `repeats` times more, and every repetition
    must have the bits of the first; 0 where that is not wanted.
    """
    first = {name: value.clone() for name, value in fast().items()}
    for name, expected in plain().items():
        apart = difference(first[name], expected)
        if not apart <= bound:
            return f"{name} of {case} is {apart:.3g} roundings from the plain way, not {bound:g}"
    for _ in range(repeats):
        for name, value in fast().items():
            if not torch.equal(value.nan_to_num(), first[name].nan_to_num()):
                return f"{name} of {case} has other bits when it is computed again"
    return None
