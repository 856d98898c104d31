"""The product in the middle of a gated MLP, with nothing kept but its two inputs.

h = a(e) * g with an activation a(e) = e * s, s = sigmoid(z(e)), as SiLU and GELU's tanh form have
it. With d = dL/dh: dg = d * a(e) and de = d * g * s * (1 + e * q * z'(e)), q = sigmoid(-z), which
1 - s would lose the digits of. a(e) and d * g are rounded where plain operations round.
"""

from __future__ import annotations

import math
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
from trainer.kernels.triton_card import triton_problem

ROUNDINGS_MAX = 4.0
GELU_FACTOR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715
"""Of GELU's tanh form: see `trainer.kernels.geglu`."""


@dataclass(frozen=True, kw_only=True)
class GatedOps:
    """One way to compute both passes over [rows, columns], whose rows may lie apart."""

    forward: Callable[..., torch.Tensor]
    backward: Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The activation of a gated MLP, and what the kernel that computes such MLPs is called."""

    name: str
    """Of the kernel."""
    title: str
    """In messages."""
    plain: Callable[[torch.Tensor], torch.Tensor]
    """As torch computes it."""
    argument: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | float]]
    """Returns z and dz/de of float32 values e."""


def plain_ops(activation: Activation) -> GatedOps:
    """Return the formulas in plain operations."""
    return GatedOps(
        forward=partial(_plain_forward, activation), backward=partial(_plain_backward, activation)
    )


def _plain_forward(activation: Activation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return h of gate and up, both [rows, columns]."""
    wide = gate.float()
    argument, _ = activation.argument(wide)
    activated = (wide / (1.0 + torch.exp(-argument))).to(gate.dtype)
    return (activated.float() * up.float()).to(gate.dtype)


def _plain_backward(  # noqa: PLR0913, PLR0917 - what a kernel gets is flat
    activation: Activation,
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    d_gate: torch.Tensor,
    d_up: torch.Tensor,
) -> None:
    """Write the gradients of gate and up into the last two."""
    wide, kind = gate.float(), gate.dtype
    argument, slope = activation.argument(wide)
    sigmoid = 1.0 / (1.0 + torch.exp(-argument))
    activated = (wide * sigmoid).to(kind).float()
    inner = (dh.float() * up.float()).to(kind).float()
    d_up.copy_(dh.float() * activated)
    rest = 1.0 / (1.0 + torch.exp(argument))
    d_gate.copy_(inner * sigmoid * (1.0 + wide * rest * slope))


class GatedFunction(torch.autograd.Function):
    """The product of two tensors, the first activated."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, ops: GatedOps) -> torch.Tensor:
        """Return a(gate) * up."""
        ctx.save_for_backward(gate, up)
        ctx.ops = ops
        return ops.forward(_rows(gate), _rows(up)).view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of gate and up."""
        gate, up = (_rows(one) for one in ctx.saved_tensors)
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        ctx.ops.backward(_rows(dh), gate, up, d_gate, d_up)
        return d_gate.view(dh.shape), d_up.view(dh.shape), None


class StackedGatedFunction(torch.autograd.Function):
    """The same of the two halves of one tensor, gate first."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor, ops: GatedOps) -> torch.Tensor:
        """Return a(first half) * second half of the last dimension."""
        ctx.save_for_backward(both)
        ctx.ops = ops
        gate, up = _rows(both).chunk(2, dim=-1)
        return ops.forward(gate, up).view(*both.shape[:-1], gate.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the stacked tensor."""
        (both,) = ctx.saved_tensors
        rows = _rows(both)
        gradient = torch.empty_like(rows)
        ctx.ops.backward(_rows(dh), *rows.chunk(2, dim=-1), *gradient.chunk(2, dim=-1))
        return gradient.view(both.shape), None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x as [rows, columns] with its last dimension contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def gated(gate: torch.Tensor, up: torch.Tensor, ops: GatedOps) -> torch.Tensor:
    """Return a(gate) * up with its graph; both have one shape and type."""
    h: torch.Tensor = GatedFunction.apply(gate, up, ops)  # type: ignore[no-untyped-call]
    return h


def stacked_gated(both: torch.Tensor, ops: GatedOps) -> torch.Tensor:
    """Return a(gate) * up of a tensor that has gate and up one behind the other."""
    h: torch.Tensor = StackedGatedFunction.apply(both, ops)  # type: ignore[no-untyped-call]
    return h


@dataclass(frozen=True, kw_only=True)
class MlpNames:
    """What an architecture calls the projections of a gated MLP."""

    inputs: tuple[str, ...]
    """Gate and up; or the one projection that makes both, stacked."""
    output: str


NAMES = (
    MlpNames(inputs=("gate_proj", "up_proj"), output="down_proj"),  # LLaMA and most others
    MlpNames(inputs=("w1", "w3"), output="w2"),  # LFM2
    MlpNames(inputs=("gate_up_proj",), output="down_proj"),  # Phi-3, GLM
    MlpNames(inputs=("input_linear",), output="output_linear"),  # Granite with experts
)


def find_names(module: Any, activation: Activation) -> MlpNames | None:
    """Return by which names this module computes such an MLP; None if it computes anything else.

    Asked are not names alone: for two rows of noise it must return, in training, what the formula
    gives, with at most one rounding between.
    """
    for names in NAMES:
        if all(
            isinstance(getattr(module, name, None), torch.nn.Module)
            for name in (*names.inputs, names.output)
        ):
            return names if _computes_it(module, names, activation) else None
    return None


def _computes_it(module: Any, names: MlpNames, activation: Activation) -> bool:
    first = getattr(module, names.inputs[0])
    columns = getattr(first, "in_features", None)
    weight = getattr(first, "weight", None)
    if not isinstance(columns, int) or not isinstance(weight, torch.Tensor) or weight.is_meta:
        return False
    kind = weight.dtype if weight.dtype.is_floating_point else _compute_type(first)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, columns, generator=generator).to(weight.device, kind)
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:  # not by `train()`, which layers may override
            part.training = True
        wanted = _drawn_alike(module, x)
        found = _drawn_alike(partial(_by_formula, module, names, activation), x)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
        return False  # it takes or returns something else: another kind of module
    finally:
        for part, training in modes.items():
            part.training = training
    return isinstance(wanted, torch.Tensor) and difference(found, wanted) <= 1.0


def _drawn_alike(compute: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """Return what `compute` makes of x, whose dropouts draw the same numbers at every call."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(1)
        return compute(x)


def _compute_type(linear: Any) -> torch.dtype:
    """Return the type in which a quantised layer computes."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    kind = getattr(base, "compute_dtype", None)
    return kind if isinstance(kind, torch.dtype) else torch.float32


def _by_formula(module: Any, names: MlpNames, activation: Activation, x: torch.Tensor) -> Any:
    parts = [getattr(module, name)(x) for name in names.inputs]
    gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
    return getattr(module, names.output)(activation.plain(gate) * up)


class GatedMlp:
    """Computes the gated MLPs of the base that have one activation; each has a kernel."""

    version = "triton-1"

    def __init__(
        self, activation: Activation, make_ops: Callable[[], GatedOps], *, in_triton: bool
    ) -> None:
        self.name = activation.name
        self._activation = activation
        self._make_ops = make_ops
        self._in_triton = in_triton
        self._places: list[Place] = []

    def unsuitable(self, model: Any, card: Card) -> str | None:
        """Return why it cannot be used: no such card, or no such MLP in the model."""
        problem = triton_problem(card) if self._in_triton else None
        if problem is None and not any(
            find_names(module, self._activation) for module in model.modules()
        ):
            problem = f"{base_name(model)} has no MLP that is a {self._activation.title}"
        return problem

    def prove(self, card: Card) -> str | None:
        """Compare both layouts on rows of several widths, with values far from zero."""
        ops, plain = self._make_ops(), plain_ops(self._activation)
        for rows, columns in ((1, 64), (19, 1536), (3, 14336), (5, 1000)):
            for stacked in (False, True):
                layout = "stacked" if stacked else "split"
                found = find_difference(
                    f"{self._activation.title} {rows}x{columns}, {layout}, in {card.dtype}",
                    partial(_both_passes, card, rows, columns, ops, stacked=stacked),
                    partial(_both_passes, card, rows, columns, plain, stacked=stacked),
                    bound=ROUNDINGS_MAX,
                    repeats=REPEATS if card.exact else 0,
                )
                if found is not None:
                    return found
        return None

    def prepare(self, model: Any) -> int:
        """Find the MLPs that have this activation."""
        ops = self._make_ops()
        self._places = []
        for module in model.modules():
            names = find_names(module, self._activation)
            if names is not None:
                forward = partial(self._forward, module, module.forward, names, ops)
                self._places.append(Place(module=module, forward=forward))
        return len(self._places)

    def enabled(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:  # noqa: ARG002 - the seam
        """Compute the prepared MLPs while inside."""
        return replaced_forwards(self._places)

    def _forward(
        self, module: Any, plain: Callable[..., Any], names: MlpNames, ops: GatedOps,
        *inputs: Any, **more: Any,
    ) -> Any:  # fmt: skip
        """Compute an MLP; its projections stay modules, so that adapters and their hooks apply."""
        if len(inputs) != 1 or more:
            return plain(*inputs, **more)
        parts = [getattr(module, name)(inputs[0]) for name in names.inputs]
        if len(parts) == 1:
            h = stacked_gated(parts[0], ops)
        elif parts[0].dtype is parts[1].dtype:
            h = gated(parts[0], parts[1], ops)
        else:  # a part kept in another type
            h = self._activation.plain(parts[0]) * parts[1]
        return getattr(module, names.output)(h)


def _both_passes(
    card: Card, rows: int, columns: int, ops: GatedOps, *, stacked: bool
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    both = 4.0 * torch.randn(rows, 2 * columns, generator=generator)
    dh = torch.randn(rows, columns, generator=generator).to(card.device, card.dtype)
    both = both.to(card.device, card.dtype)
    if stacked:
        both.requires_grad_()
        h = stacked_gated(both, ops)
        h.backward(dh)  # type: ignore[no-untyped-call]
        assert both.grad is not None
        return {"h": h.detach(), "its gradient": both.grad}
    gate, up = (half.contiguous().requires_grad_() for half in both.chunk(2, dim=-1))
    h = gated(gate, up, ops)
    h.backward(dh)  # type: ignore[no-untyped-call]
    assert gate.grad is not None
    assert up.grad is not None
    return {"h": h.detach(), "the gradient of gate": gate.grad, "the gradient of up": up.grad}
