"""Lists the fused kernels that a card may use, in the order in which they are examined."""

from __future__ import annotations

from trainer.kernels.geglu import GeGlu
from trainer.kernels.kernel_set import Kernel
from trainer.kernels.linear_4bit import BaseLinear4bit
from trainer.kernels.linear_cross_entropy import LinearCrossEntropy
from trainer.kernels.lora_dropout import LoraDropout
from trainer.kernels.lora_linear_function import LoraLinear
from trainer.kernels.rms_norm import RmsNorm
from trainer.kernels.swiglu import SwiGlu


def make_fused_kernels() -> list[Kernel]:
    """Return new, unprepared kernels; which of them suit is for each of them to say."""
    return [
        BaseLinear4bit(),
        RmsNorm(),
        SwiGlu(),
        GeGlu(),
        LinearCrossEntropy(),
        LoraLinear(),
        LoraDropout(),
    ]
