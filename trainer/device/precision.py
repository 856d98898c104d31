"""Chooses the arithmetic of a device by its compute capability, not by what its driver claims.

A T4 answers "yes" when asked for bfloat16 support and then emulates it; so nothing is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import PrecisionChoice
from trainer.errors import ConfigError

BF16_SINCE = (8, 0)  # Ampere


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The types of one run; parameters being trained are float32 in all of them."""

    compute: PrecisionChoice  # of the frozen weights and of the forward pass; never `auto`
    autocast: bool  # let torch choose the type per operation
    loss_scaling: bool  # keep small float16 gradients from vanishing
    reason: str

    @property
    def mixed(self) -> str:
        """The name of this choice for `accelerate.Accelerator(mixed_precision=...)`."""
        return str(self.compute) if self.autocast else "no"


def choose_precision(
    wanted: PrecisionChoice, *, device: str, capability: tuple[int, int] | None, seq2seq: bool
) -> Precision:
    """Return the arithmetic for a device (`cpu` or `cuda` with its compute capability).

    Raises:
        ConfigError: the wanted precision cannot be trained with on this device.
    """
    choice, reason = _resolve(wanted, device, capability)
    if choice is PrecisionChoice.FP32:
        return Precision(compute=choice, autocast=False, loss_scaling=False, reason=reason)
    if choice is PrecisionChoice.BF16:
        return Precision(compute=choice, autocast=True, loss_scaling=False, reason=reason)
    if seq2seq:  # T5 overflows float16; its `wo` is kept in float32, which autocast would undo
        return Precision(
            compute=choice,
            autocast=False,
            loss_scaling=True,
            reason=f"{reason}; no autocast, which would cast T5's float32 layers back",
        )
    return Precision(compute=choice, autocast=True, loss_scaling=True, reason=reason)


def _resolve(
    wanted: PrecisionChoice, device: str, capability: tuple[int, int] | None
) -> tuple[PrecisionChoice, str]:
    if device == "cpu":
        if wanted is PrecisionChoice.FP16:
            raise ConfigError(
                ["train.precision: fp16 needs a GPU; use `auto`, which is fp32 on a CPU"]
            )
        if wanted is PrecisionChoice.AUTO:
            return PrecisionChoice.FP32, (
                "fp32: many CPUs emulate bfloat16 slowly, and a run must not change its "
                "arithmetic when it moves to another CPU"
            )
        return wanted, f"{wanted} as configured"
    if capability is None:
        raise ConfigError([f"train.precision: device {device!r} is not supported: use CUDA or CPU"])
    name = f"compute capability {capability[0]}.{capability[1]}"
    if wanted is PrecisionChoice.AUTO:
        chosen = PrecisionChoice.BF16 if capability >= BF16_SINCE else PrecisionChoice.FP16
        return chosen, f"{chosen} for {name}"
    if wanted is PrecisionChoice.BF16 and capability < BF16_SINCE:
        raise ConfigError(
            [f"train.precision: bf16 is only emulated at {name}; use `auto`, which is fp16 there"]
        )
    return wanted, f"{wanted} as configured, {name}"
