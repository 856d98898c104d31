"""A 4-bit layer and its LoRA update over the tokens of a batch alone, without its padding.

The operations are PEFT's, in PEFT's order, on fewer rows. What adds up over tokens, which is the
gradients of A and B, is computed of the padded batch, with zeros where there is padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from trainer.device.token_rows import TokenRows, rows_stand_alone
from trainer.device.unpacked import LayerValues


@dataclass(frozen=True, kw_only=True)
class RowLayer:
    """What such a layer is beside the tensors that have gradients."""

    values: LayerValues
    bias: torch.Tensor | None
    scaling: float
    rows: TokenRows


class LoraOverRowsFunction(torch.autograd.Function):
    """Returns x W + b and the scaled update; zeros at padding.

    x is given twice, once for the update and once for the base. So both parts of its gradient are
    added one after the other to what is there, as if they came from two functions.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd sees tensors only if they are arguments
        ctx: Any, x: torch.Tensor, _again: torch.Tensor, taken: torch.Tensor,
        a: torch.Tensor, b: torch.Tensor, layer: RowLayer,
    ) -> torch.Tensor:  # fmt: skip
        """Return the output for the whole batch; `taken` are the tokens of x."""
        found = layer.rows.product(taken, layer.values.get().t(), layer.bias)
        h = taken @ a.t()
        found[:-1].add_((h @ b.t()).mul_(layer.scaling))
        ctx.save_for_backward(x, h, a, b)
        ctx.layer = layer
        return layer.rows.put(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, of x again, and of A and B."""
        (x, h, a, b), layer = ctx.saved_tensors, ctx.layer
        rows, s = layer.rows, layer.scaling
        g = gradient.reshape(-1, gradient.shape[-1])
        taken = rows.take(g)
        room = rows.room(h, h.shape[1])
        if is_exact(s):  # then it is the same number whichever factor is multiplied
            torch.mul(h, s, out=room[:-1])
            d_b = g.t() @ rows.put(room).flatten(0, 1)
            dh = rows.product(taken, b * s)
        else:
            room[:-1].copy_(h)
            d_b = (g * s).t() @ rows.put(room).flatten(0, 1)
            dh = rows.product(taken * s, b)
        d_a = rows.put(dh).flatten(0, 1).t() @ x.reshape(-1, x.shape[-1])
        if not ctx.needs_input_grad[0]:
            return None, None, None, d_a, d_b, None
        by_update = rows.put(rows.product(dh[:-1], a))
        by_base = rows.put(rows.product(taken, layer.values.get()))
        return by_update, by_base, None, d_a, d_b, None


def is_exact(scaling: float) -> bool:
    """Tell whether to multiply by this factor never rounds: a power of two of at least 1."""
    return scaling >= 1 and math.frexp(scaling)[0] == 0.5


def over_rows(
    inputs: torch.Tensor, base: Any, first: Any, second: Any, scaling: float
) -> torch.Tensor | None:
    """Compute a layer with its update over the tokens alone; None if that cannot be done."""
    values = getattr(vars(base).get("forward"), "__self__", None)
    if not isinstance(values, LayerValues) or values.layer.weight.requires_grad:
        return None
    rows = values.rows_of(inputs)
    if rows is None or not (_is_plain(first) and _is_plain(second)):
        return None
    a, b, bias = first.weight, second.weight, base.bias
    kinds = {a.dtype, b.dtype, torch.float32 if bias is None else bias.dtype}
    if kinds != {torch.float32} or not (a.requires_grad and b.requires_grad):
        return None
    threads = torch.get_num_threads()
    if not all(rows_stand_alone(*one.shape, threads) for one in (a, b)):
        return None
    layer = RowLayer(values=values, bias=bias, scaling=scaling, rows=rows)
    found: torch.Tensor = LoraOverRowsFunction.apply(  # type: ignore[no-untyped-call]
        inputs, inputs, rows.take_shared(inputs), a, b, layer
    )
    return found


def _is_plain(matrix: Any) -> bool:
    """Tell whether a module is a linear layer without a bias that nobody watches."""
    state = vars(matrix)
    hooks = (state[f"_{name}"] for name in HOOKS)
    return type(matrix) is torch.nn.Linear and matrix.bias is None and not any(hooks)


HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
