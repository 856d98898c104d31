"""LoRA's update of a linear layer as one function: two products, the second added where y is.

With x' = drop(x) or x: h = x' A^T and y += s h B^T. The gradients, with g = dL/dy and u = s g B:
dB = s g^T h, dA = u^T x', dx gets drop(u A), and y gets g. PEFT copies y, and rounds h B^T, its
multiple and the sum one after the other; here the sum is rounded once. The base's own product stays
with its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trainer.kernels.equality import REPEATS, find_difference
from trainer.kernels.fewer_copies import plain_adapter
from trainer.kernels.kernel_set import Card
from trainer.kernels.lora_dropout import DropoutOps, Mask, mask_seed, triton_ops
from trainer.kernels.places import Place, replaced_forwards
from trainer.kernels.triton_card import triton_problem

ROUNDINGS_MAX = 6.0  # three roundings that PEFT makes and this does not
FLOAT32_ROUNDINGS_MAX = 64.0  # of products, whose terms may be added up in any order


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an update is beside its tensors: its factor, and the mask of its input, if any."""

    scaling: float
    mask: Mask | None = None

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Return x as the mask leaves it."""
        return x if self.mask is None else self.mask.apply(x)


class LoraUpdateFunction(torch.autograd.Function):
    """Adds the update to y in its place."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd sees tensors only if they are arguments
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, update: Update
    ) -> torch.Tensor:
        """Return y, which then has the update."""
        h = update.dropped(x).reshape(-1, x.shape[-1]) @ a.t()
        y.view(-1, y.shape[-1]).addmm_(h, b.t(), alpha=update.scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, a, b, h)
        ctx.update = update
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of y, x, A and B."""
        (x, a, b, h), update = ctx.saved_tensors, ctx.update
        rows = g.reshape(-1, g.shape[-1])
        u = (rows @ b) * update.scaling
        d_a = u.t() @ update.dropped(x).reshape(-1, x.shape[-1])
        d_b = (rows.t() @ h) * update.scaling
        dx = update.dropped((u @ a).view(x.shape)) if ctx.needs_input_grad[1] else None
        return g, dx, d_a, d_b, None


def add_update(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, update: Update
) -> torch.Tensor:
    """Return y plus the update, with its graph; y may be overwritten, unless it is a view."""
    whole = y.clone() if y._is_view() or (y.is_leaf and y.requires_grad) else y  # noqa: SLF001
    if y.dtype is not x.dtype:  # a layer that the base keeps in another type
        return y + (linear(linear(update.dropped(x), a), b) * update.scaling).to(y.dtype)
    with torch.autocast(y.device.type, enabled=False):
        done: torch.Tensor = LoraUpdateFunction.apply(  # type: ignore[no-untyped-call]
            whole.contiguous(), x, a.to(y.dtype), b.to(y.dtype), update
        )
    return done


class LoraLinear:
    """Computes every plain LoRA layer whose matrices nobody watches."""

    name = "lora_linear"
    version = "addmm-1"

    def __init__(self, make_ops: Callable[[], DropoutOps] = triton_ops) -> None:
        self._make_ops = make_ops
        self._places: list[Place] = []
        self._seed = 0

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why it cannot be used: no card, no such layer, or no Triton for their dropout."""
        on_card = self._make_ops is triton_ops
        if on_card and card.device.type != "cuda":
            return "it needs a CUDA card"
        layers = list(_plain_layers(model))
        if not layers:
            return "there is no plain LoRA layer without hooks"
        if on_card and any(_p(layer, name) for layer, name in layers):
            return triton_problem(card)
        return None

    def prove(self, card: Card) -> str | None:
        """Compare both passes with PEFT's order of operations; with dropout where Triton is."""
        has_dropout = self._make_ops is not triton_ops or triton_problem(card) is None
        bound = FLOAT32_ROUNDINGS_MAX if card.dtype is torch.float32 else ROUNDINGS_MAX
        for p in (0.0, 0.1) if has_dropout else (0.0,):
            mask = Mask(seed=1 << 62, p=p, ops=self._make_ops()) if p else None
            update = Update(scaling=2.0, mask=mask)
            for rows, columns in ((1, 64), (50, 576)):
                found = find_difference(
                    f"a LoRA update {rows}x{columns} in {card.dtype}",
                    partial(_both_passes, card, rows, columns, partial(add_update, update=update)),
                    partial(_both_passes, card, rows, columns, partial(_as_peft, update=update)),
                    bound=bound,
                    repeats=REPEATS if card.exact else 0,
                )
                if found is not None:
                    return found
        return None

    def prepare(self, model: Any) -> int:
        """Find the layers, in the order of the model, which gives each its number."""
        self._places = []
        for number, (layer, name) in enumerate(_plain_layers(model)):
            ops = self._make_ops() if _p(layer, name) else None
            forward = partial(self._forward, layer, layer.forward, number, ops)
            self._places.append(Place(module=layer, forward=forward))
        return len(self._places)

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:  # noqa: ARG002 - the seam
        """Drop by the seed that torch was given last, which is that of the micro-batch."""
        self._seed = torch.initial_seed()
        with replaced_forwards(self._places):
            yield

    def _forward(
        self, layer: Any, plain: Callable[..., Any], number: int, ops: DropoutOps | None,
        *inputs: Any, **more: Any,
    ) -> Any:  # fmt: skip
        """Compute a layer; as PEFT does where it, its input or its types are not the usual ones."""
        name = plain_adapter(layer)
        if name is None or len(inputs) != 1 or more:
            return plain(*inputs, **more)
        x, matrices = inputs[0], (layer.lora_A[name].weight, layer.lora_B[name].weight)
        device = x.device.type
        casting = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casting else matrices[0].dtype
        if x.dtype is not dtype:
            return plain(x)
        mask = None
        if ops is not None and layer.lora_dropout[name].training:
            mask = Mask(seed=mask_seed(self._seed, number), p=_p(layer, name), ops=ops)
        y = layer.base_layer(x)
        return add_update(y, x, *matrices, Update(scaling=layer.scaling[name], mask=mask))


def _plain_layers(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield each layer that adds one plain LoRA to a linear base, and the name of its adapter.

    The matrices are used without being called, so none may have a hook (DyLoRA's cuts off ranks).
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.bnb import Linear4bit

    for layer in model.modules():
        if type(layer) in {Linear, Linear4bit} and (name := plain_adapter(layer)) is not None:
            parts = (layer.lora_A[name], layer.lora_B[name])
            states = [vars(one) for one in parts]
            hooks = [one["_forward_hooks"] or one["_forward_pre_hooks"] for one in states]
            usual = type(layer.lora_dropout[name]) in {torch.nn.Identity, torch.nn.Dropout}
            linears = all(type(one) is torch.nn.Linear and one.bias is None for one in parts)
            if usual and linears and not any(hooks):
                yield layer, name


def _p(layer: Any, name: str) -> float:
    """Return with which probability the layer drops an element of its input in training."""
    return float(getattr(layer.lora_dropout[name], "p", 0.0))


def _as_peft(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, update: Update
) -> torch.Tensor:
    """Return y plus the update in PEFT's operations, for the mask of `update`."""
    dropped = x if update.mask is None else x * update.mask.apply(torch.ones_like(x))
    return y + linear(linear(dropped, a), b) * update.scaling


def _both_passes(
    card: Card, rows: int, columns: int, add: Callable[..., torch.Tensor]
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    names = {"y": (rows, 48), "x": (rows, columns), "A": (8, columns), "B": (48, 8)}
    drawn = {
        name: torch.randn(shape, generator=generator).to(card.device, card.dtype).requires_grad_()
        for name, shape in names.items()
    }
    done = add(*drawn.values())
    g = torch.randn(done.shape, generator=generator).to(card.device, card.dtype)
    found = torch.autograd.grad(done, list(drawn.values()), g)
    gradients = {f"the gradient of {name}": one for name, one in zip(drawn, found, strict=True)}
    return {"y": done.detach(), **gradients}
