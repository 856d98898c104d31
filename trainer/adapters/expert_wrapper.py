"""Adds an adapter to experts in four bits while a forward pass asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch.nn.utils import parametrize


class _AddLowRank(torch.nn.Module):
    """Adds scaling · lhs · rhs to a tensor, expert by expert."""

    def __init__(self, lhs: torch.Tensor, rhs: torch.Tensor, scaling: float) -> None:
        super().__init__()
        self.lhs, self.rhs, self.scaling = lhs, rhs, scaling

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum in the type of `weight`, whatever autocast says."""
        with torch.autocast(device_type=weight.device.type, enabled=False):
            return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)


class FourBitParamWrapper(ParamWrapper):  # type: ignore[misc]  # PEFT ships no types
    """PEFT's adapter of one tensor of experts, where that is in four bits.

    It dequantises once a pass where PEFT's own does several times, and takes away after the pass
    what it has added for it, which PEFT 0.21.2 does not on a tensor that is parametrised already.
    """

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        steps: Any = self.get_base_layer().parametrizations[self.parameter_name]
        present = len(steps)
        adapters = [one for one in active_adapters if one in self.lora_A]
        for adapter in adapters:
            steps.append(_AddLowRank(*self._factors(adapter, steps[0].quant_state.dtype)))
        try:
            with parametrize.cached():
                yield
        finally:
            del steps[present:]

    def _factors(
        self, adapter: str, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return lhs, rhs and scaling, laid out as PEFT's `get_delta_weight` reads A and B."""
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        a = a.reshape(self.num_experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        if self._did_swap_in_out_features:
            lhs, rhs = b, a
        else:  # stored as (expert, inputs, outputs)
            lhs, rhs = a.transpose(-2, -1), b.transpose(-2, -1)
        return lhs.to(dtype), rhs.to(dtype), self.scaling[adapter]
