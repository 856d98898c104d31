"""RMSNorm with a frozen weight, forward and backward in one pass over the row each.

Nothing is computed for the weight. Kept for the backward pass are x and one number a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trainer.kernels.equality import REPEATS, difference, find_difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.places import Place, base_name, replaced_forwards
from trainer.kernels.plain_rms_norm import Form, forms, plain_backward, plain_forward
from trainer.kernels.triton_card import triton_problem

COLUMNS_MAX = 32768  # a row is held whole by one program
ROUNDINGS_MAX = 4.0


@dataclass(frozen=True, kw_only=True)
class RmsNormOps:
    """One way to compute both passes over contiguous [rows, columns]."""

    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., torch.Tensor]


PLAIN = RmsNormOps(forward=plain_forward, backward=plain_backward)


def triton_ops() -> RmsNormOps:
    """Return the way of the card."""
    from trainer.kernels import triton_rms_norm

    return RmsNormOps(forward=triton_rms_norm.forward, backward=triton_rms_norm.backward)


class RmsNormFunction(torch.autograd.Function):
    """RMSNorm of the last dimension; the weight gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, form: Form, ops: RmsNormOps
    ) -> torch.Tensor:
        """Return the norm of x."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y, scale = ops.forward(rows, weight, form)
        ctx.save_for_backward(x, weight, scale)
        ctx.form, ctx.ops = form, ops
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of x."""
        x, weight, scale = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        d_rows = dy.reshape(rows.shape).contiguous()
        dx = ctx.ops.backward(d_rows, rows, weight, scale, ctx.form)
        return dx.view(x.shape), None, None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, form: Form, ops: RmsNormOps) -> torch.Tensor:
    """Return the norm of x over its last dimension, in the type of x, with its graph."""
    y: torch.Tensor = RmsNormFunction.apply(x, weight, form, ops)  # type: ignore[no-untyped-call]
    return y


def find_form(module: Any) -> Form | None:
    """Return the form in which this module computes an RMSNorm; None if it computes anything else.

    Asked is not its name but what it returns: for two rows of noise it must be what the formula
    gives, with at most one rounding between.
    """
    weight, eps = getattr(module, "weight", None), find_eps(module)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or eps is None:
        return None
    if weight.requires_grad or not 1 < weight.numel() <= COLUMNS_MAX or weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, weight.numel(), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            wanted = module(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None  # it takes other arguments: another kind of norm
        if not isinstance(wanted, torch.Tensor):
            return None
        found = {form: difference(plain_forward(x, weight, form)[0], wanted) for form in forms(eps)}
    best = min(found, key=lambda form: (not found[form] <= 1.0, found[form]))
    return best if found[best] <= 1.0 else None


def find_eps(module: Any) -> float | None:
    """Return what the module adds to the mean square."""
    for name in ("variance_epsilon", "eps"):
        eps = getattr(module, name, None)
        if isinstance(eps, float):
            return eps
    return None


class RmsNorm:
    """Computes the RMSNorms of the base whose weights are frozen."""

    name = "rms_norm"
    version = "triton-1"

    def __init__(self, make_ops: Callable[[], RmsNormOps] = triton_ops) -> None:
        self._make_ops = make_ops
        self._places: list[Place] = []

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why it cannot be used: no such card, or no such norm in the model."""
        problem = triton_problem(card) if self._make_ops is triton_ops else None
        if problem is None and not any(find_form(module) for module in _norms(model)):
            problem = f"{base_name(model)} has no frozen RMSNorm"
        return problem

    def prove(self, card: Card) -> str | None:
        """Compare each form on rows of several widths, with a spike as trained models have it."""
        ops = self._make_ops()
        for form in forms(1e-6):
            for rows, columns in ((1, 64), (37, 576), (5, 4096), (3, 5000)):
                case = f"RMSNorm {rows}x{columns} in {card.dtype}"
                found = find_difference(
                    case,
                    partial(_both_passes, card, rows, columns, form, ops),
                    partial(_both_passes, card, rows, columns, form, PLAIN),
                    bound=ROUNDINGS_MAX,
                    repeats=REPEATS if card.exact else 0,
                )
                if found is not None:
                    return found
        return None

    def prepare(self, model: Any) -> int:
        """Find the norms that are computed as one of the forms."""
        ops = self._make_ops()
        self._places = []
        for module in _norms(model):
            form = find_form(module)
            if form is not None:
                compute = partial(rms_norm, form=form, ops=ops)
                forward = partial(_forward, module, module.forward, compute)
                self._places.append(Place(module=module, forward=forward))
        return len(self._places)

    def enabled(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:  # noqa: ARG002 - the seam
        """Compute the prepared norms while inside."""
        return replaced_forwards(self._places)


def _norms(model: Any) -> list[Any]:
    """Return the modules that may be an RMSNorm, by the name of their class."""
    return [module for module in model.modules() if "RMSNorm" in type(module).__name__]


def _forward(
    module: Any, plain: Callable[..., Any], fused: Callable[..., Any], *inputs: Any, **options: Any
) -> Any:
    """Compute a norm; in its own way where types or arguments are not those of the proof."""
    weight = module.weight
    usual = len(inputs) == 1 and not options and inputs[0].dtype is weight.dtype
    if not usual or inputs[0].shape[-1] != weight.numel():
        return plain(*inputs, **options)
    return fused(inputs[0], weight)


def _both_passes(
    card: Card, rows: int, columns: int, form: Form, ops: RmsNormOps
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(rows, columns, generator=generator)
    x[0, 3] = columns**0.5  # as large as the rest of the row together
    weight, dy = (
        torch.randn(columns, generator=generator),
        torch.randn(x.shape, generator=generator),
    )
    x, weight, dy = (one.to(card.device, card.dtype) for one in (x, weight, dy))
    x.requires_grad_()
    y = rms_norm(x, weight, form, ops)
    y.backward(dy)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad}
