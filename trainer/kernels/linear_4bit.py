"""The base's own product in a 4-bit layer: its values are unpacked, then multiplied by cuBLAS.

bitsandbytes takes a kernel of its own for few tokens and this way for many, so the arithmetic of a
row depends on how many tokens are computed with it. Here all are computed in one way, and whether
the values are unpacked each time or once, and kept, changes no bit (`trainer.device.unpacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from trainer.device.unpacked import LayerValues, UnpackedBase, unpackable
from trainer.kernels.equality import REPEATS, find_difference
from trainer.kernels.kernel_set import Card
from trainer.kernels.places import Place, base_name, replaced_forwards

ROUNDINGS_MAX = 6.0  # a kernel for few tokens may round the values of a weight elsewhere
FLOAT32_ROUNDINGS_MAX = 64.0  # of products, whose terms may be added up in any order
QUANTISATIONS = (("nf4", True), ("fp4", False))
ROWS = (1, 50, 700)  # tokens: bitsandbytes has a way for each
COLUMNS, OUTPUTS = 256, 384


class BaseLinear4bit:
    """Computes the frozen 4-bit layers of a base."""

    name = "linear_4bit"
    version = "unpacked-1"

    def __init__(self, make_values: Callable[[Any], LayerValues] = LayerValues) -> None:
        self._make_values = make_values
        self._places: list[Place] = []
        self.layers: tuple[LayerValues, ...] = ()
        """Of the prepared model; their values may be kept."""

    def unsuitable(self, model: Any, card: Card) -> str | None:  # noqa: ARG002 - any device can
        """Return why it cannot be used: there is no such layer."""
        if next(unpackable(model), None) is None:
            return f"{base_name(model)} has no frozen 4-bit layer"
        return None

    def prove(self, card: Card) -> str | None:
        """Compare both passes with bitsandbytes' own, and kept values with those that are not."""
        bound = FLOAT32_ROUNDINGS_MAX if card.dtype is torch.float32 else ROUNDINGS_MAX
        for kind, nested in QUANTISATIONS:
            layer = _make_layer(card, kind, nested=nested)
            values = self._make_values(layer)
            for rows in ROWS:
                case = f"a 4-bit product of {rows} tokens ({kind}) in {card.dtype}"
                found = find_difference(
                    case,
                    partial(_both_passes, card, rows, values.forward),
                    partial(_both_passes, card, rows, layer),
                    bound=bound,
                    repeats=REPEATS if card.exact else 0,
                ) or _kept_difference(case, card, rows, values)
                if found is not None:
                    return found
        return None

    def prepare(self, model: Any) -> int:
        """Find the layers."""
        self.layers = tuple(self._make_values(one.layer) for one in unpackable(model))
        self._places = [Place(module=one.layer, forward=one.forward) for one in self.layers]
        return len(self._places)

    def enabled(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:  # noqa: ARG002 - the seam
        """Compute the prepared layers while inside."""
        return replaced_forwards(self._places)


def _kept_difference(case: str, card: Card, rows: int, values: LayerValues) -> str | None:
    """Return what has other bits with values that are kept; None if nothing has."""
    unpacked_anew = _both_passes(card, rows, values.forward)
    kept = UnpackedBase([values], installed=False)
    found = _both_passes(card, rows, values.forward)
    kept.release()
    for name, value in found.items():
        if not torch.equal(value, unpacked_anew[name]):
            return f"{name} of {case} has other bits when the values are kept unpacked"
    return None


def _make_layer(card: Card, kind: str, *, nested: bool) -> Any:
    """Return a 4-bit layer with a bias, of fixed numbers, quantised on the device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    generator = torch.Generator().manual_seed(1)
    weight = 0.05 * torch.randn(OUTPUTS, COLUMNS, generator=generator)
    bias = torch.randn(OUTPUTS, generator=generator)
    layer = Linear4bit(
        COLUMNS, OUTPUTS, compute_dtype=card.dtype, quant_type=kind, compress_statistics=nested
    )
    layer.weight = Params4bit(
        weight.to(card.dtype), requires_grad=False, quant_type=kind, compress_statistics=nested
    )
    layer.bias = torch.nn.Parameter(bias.to(card.dtype), requires_grad=False)
    return layer.to(card.device)


def _both_passes(
    card: Card, rows: int, compute: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    drawn = (torch.randn(rows, wide, generator=generator) for wide in (COLUMNS, OUTPUTS))
    x, g = (one.to(card.device, card.dtype) for one in drawn)
    x.requires_grad_()
    with torch.enable_grad():
        y = compute(x)
        (dx,) = torch.autograd.grad(y, [x], g)
    return {"y": y.detach(), "the gradient of x": dx}
