"""SwiGLU: gated MLPs whose activation is SiLU, e * sigmoid(e), as of LLaMA and most others."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn.functional import silu

from trainer.kernels.gated_mlp import Activation, GatedMlp, GatedOps, plain_ops

SILU = Activation(name="swiglu", title="SwiGLU", plain=silu, argument=lambda values: (values, 1.0))
PLAIN = plain_ops(SILU)


def triton_ops() -> GatedOps:
    """Return the way of the card."""
    from trainer.kernels import triton_gated_mlp

    return triton_gated_mlp.ops(gelu=False)


class SwiGlu(GatedMlp):
    """Computes the gated MLPs of the base whose activation is SiLU."""

    def __init__(self, make_ops: Callable[[], GatedOps] = triton_ops) -> None:
        super().__init__(SILU, make_ops, in_triton=make_ops is triton_ops)
