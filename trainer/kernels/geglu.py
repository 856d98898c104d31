"""GeGLU: gated MLPs whose activation is GELU in its tanh form, as of Gemma.

0.5 * e * (1 + tanh(u)) with u = sqrt(2 / pi) * (e + 0.044715 * e**3) is e * sigmoid(2 * u).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import gelu

from trainer.kernels.gated_mlp import (
    GELU_CUBIC,
    GELU_FACTOR,
    Activation,
    GatedMlp,
    GatedOps,
    plain_ops,
)


def _argument(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 2 * u and its derivative."""
    squares = GELU_CUBIC * values * values
    return GELU_FACTOR * values * (1.0 + squares), GELU_FACTOR * (1.0 + 3.0 * squares)


GELU = Activation(
    name="geglu", title="GeGLU", plain=partial(gelu, approximate="tanh"), argument=_argument
)
PLAIN = plain_ops(GELU)


def triton_ops() -> GatedOps:
    """Return the way of the card."""
    from trainer.kernels import triton_gated_mlp

    return triton_gated_mlp.ops(gelu=True)


class GeGlu(GatedMlp):
    """Computes the gated MLPs of the base whose activation is GELU in its tanh form."""

    def __init__(self, make_ops: Callable[[], GatedOps] = triton_ops) -> None:
        super().__init__(GELU, make_ops, in_triton=make_ops is triton_ops)
