"""LoRA's dropout without masks in memory: a mask is made again from its seed when it is needed.

Plain dropout keeps, for every adapted layer, the mask and the dropped copy of the layer's input.
Here a layer computes h = drop(x) A^T and keeps x, which its neighbours keep as well. The seed is
that of the micro-batch, and so of run, step and micro-batch, with the number of the layer; a
recomputation of activations needs no state of a generator. Both matrices stay what they were, so
that hooks on them, and buffers in the place of parameters, work as before.
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
from trainer.kernels.kernel_set import Card
from trainer.kernels.places import Place, replaced_forwards
from trainer.kernels.plain_dropout import plain_dropped
from trainer.kernels.triton_card import triton_problem
from trainer.schedule import derive_seed

ROUNDINGS_MAX = 4.0
FLOAT32_ROUNDINGS_MAX = 32.0  # of products, whose terms may be added up in any order


@dataclass(frozen=True, kw_only=True)
class DropoutOps:
    """One way to compute `plain_dropped`."""

    dropped: Callable[[torch.Tensor, int, float], torch.Tensor]


PLAIN = DropoutOps(dropped=plain_dropped)


def triton_ops() -> DropoutOps:
    """Return the way of the card."""
    from trainer.kernels import triton_dropout

    return DropoutOps(dropped=triton_dropout.dropped)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A mask that is not kept: its seed, the probability to drop, and how it is made."""

    seed: int
    p: float
    ops: DropoutOps

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x with the mask's elements dropped and the others scaled."""
        return self.ops.dropped(x, self.seed, self.p)


def mask_seed(seed: int, number: int) -> int:
    """Return the seed of the mask of a layer, in [2^62, 2^63), by that of the micro-batch."""
    return derive_seed(seed, "lora_dropout", number) >> 2 | 1 << 62


class DroppedLinearFunction(torch.autograd.Function):
    """h = drop(x) A^T, of which x and A are kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Return h."""
        ctx.save_for_backward(x, weight)
        ctx.mask = mask
        return linear(mask.apply(x), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and A."""
        x, weight = ctx.saved_tensors
        dx = ctx.mask.apply(dh @ weight) if ctx.needs_input_grad[0] else None
        rows = dh.reshape(-1, dh.shape[-1])
        d_weight = rows.t() @ ctx.mask.apply(x).reshape(-1, x.shape[-1])
        return dx, d_weight, None


def dropped_linear(x: torch.Tensor, weight: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return drop(x) A^T with its graph, in the type that autocast gives a linear layer."""
    device = x.device.type
    casting = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casting else weight.dtype
    with torch.autocast(device, enabled=False):
        h: torch.Tensor = DroppedLinearFunction.apply(x.to(dtype), weight.to(dtype), mask)  # type: ignore[no-untyped-call]
    return h


@dataclass(frozen=True, kw_only=True)
class DroppedLayer:
    """Dropout and first matrix of an adapted layer, and its number in the model."""

    dropout: Any
    matrix: Any
    plain: Callable[..., Any]
    """The matrix's own forward."""
    number: int


class LoraDropout:
    """Computes the dropout of every plain LoRA layer together with its first matrix.

    It is the second choice for such layers: `LoraLinear` has the same name and comes first, but
    cannot compute matrices that have hooks.
    """

    name = "lora_linear"
    version = "seeded-dropout-1"

    def __init__(self, make_ops: Callable[[], DropoutOps] = triton_ops) -> None:
        self._make_ops = make_ops
        self._places: list[Place] = []
        self._seed = 0

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why it cannot be used: no such card, or no dropout in front of plain LoRA."""
        problem = triton_problem(card) if self._make_ops is triton_ops else None
        if problem is None and not any(_dropped_layers(model)):
            problem = "no plain LoRA layer has a dropout"
        return problem

    def prove(self, card: Card) -> str | None:
        """Compare masks bit for bit, and both passes within rounding, with the plain formulas."""
        ops = self._make_ops()
        product = FLOAT32_ROUNDINGS_MAX if card.dtype is torch.float32 else ROUNDINGS_MAX
        for rows, columns, p in ((1, 64, 0.5), (33, 576, 0.05), (7, 4096, 0.1)):
            for outcome, bound in ((_mask_only, 0.0), (_both_passes, product)):
                found = find_difference(
                    f"LoRA's dropout {rows}x{columns} in {card.dtype}",
                    partial(outcome, card, rows, columns, p, ops),
                    partial(outcome, card, rows, columns, p, PLAIN),
                    bound=bound,
                    repeats=REPEATS if card.exact else 0,
                )
                if found is not None:
                    return found
        return None

    def prepare(self, model: Any) -> int:
        """Find the layers, in the order of the model, which gives each its number."""
        ops = self._make_ops()
        self._places = []
        layers = list(_dropped_layers(model))
        for number, (dropout, matrix) in enumerate(layers):
            layer = DroppedLayer(
                dropout=dropout, matrix=matrix, plain=matrix.forward, number=number
            )
            forward = partial(self._forward, layer, ops)
            self._places.append(Place(module=dropout, forward=_unchanged))
            self._places.append(Place(module=matrix, forward=forward))
        return len(layers)

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:  # noqa: ARG002 - the seam
        """Drop by the seed that torch was given last, which is that of the micro-batch."""
        self._seed = torch.initial_seed()
        with replaced_forwards(self._places):
            yield

    def _forward(self, layer: DroppedLayer, ops: DropoutOps, x: torch.Tensor) -> Any:
        if not layer.dropout.training:
            return layer.plain(x)
        mask = Mask(seed=mask_seed(self._seed, layer.number), p=layer.dropout.p, ops=ops)
        return dropped_linear(x, layer.matrix.weight, mask)


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    """Leave the dropping to the matrix behind."""
    return x


def _dropped_layers(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield dropout and first matrix of each LoRA layer that drops, and uses x for nothing else.

    A layer with a variant of LoRA, such as DoRA, gives its dropped input to other products, too.
    """
    for module in model.modules():
        matrices = getattr(module, "lora_A", None)
        dropouts = getattr(module, "lora_dropout", None)
        if matrices is None or dropouts is None:
            continue
        for adapter in module.active_adapters:
            if adapter not in matrices or adapter in getattr(module, "lora_variant", ()):
                continue
            dropout, matrix = dropouts[adapter], matrices[adapter]
            plain = type(matrix) is torch.nn.Linear and matrix.bias is None
            if plain and type(dropout) is torch.nn.Dropout and 0.0 < dropout.p < 1.0:
                yield dropout, matrix


def _mask_only(
    card: Card, rows: int, columns: int, p: float, ops: DropoutOps
) -> dict[str, torch.Tensor]:
    ones = torch.ones(rows, columns, dtype=card.dtype, device=card.device)
    kept = Mask(seed=columns | 1 << 62, p=p, ops=ops).apply(ones) != 0
    return {"the mask": kept.float()}


def _both_passes(
    card: Card, rows: int, columns: int, p: float, ops: DropoutOps
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    shapes = ((rows, columns), (8, columns), (rows, 8))
    tensors = (torch.randn(shape, generator=generator) for shape in shapes)
    x, weight, dh = (one.to(card.device, card.dtype) for one in tensors)
    x.requires_grad_()
    weight.requires_grad_()
    h = dropped_linear(x, weight, Mask(seed=columns | 1 << 62, p=p, ops=ops))
    h.backward(dh)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert weight.grad is not None
    return {"h": h.detach(), "the gradient of x": x.grad, "the gradient of A": weight.grad}
