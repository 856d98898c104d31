"""Trains MiSS with PEFT: one matrix a layer, on sums of its inputs (Kang and Yin, 2024).

The inputs of a layer that stand r apart are added up, and the r sums are multiplied by one trained
matrix [r, rows]; it begins at zero, so there is no scale and nothing random.
"""

from __future__ import annotations

from typing import Any

import torch

from trainer.adapters.settings import AdapterSettings
from trainer.errors import ConfigError
from trainer.method_table import MethodTable

BLOCK = ".miss_block"
"""How the names of its tensors end."""


def fresh_settings(method: MethodTable, *, targets: list[str], seq2seq: bool) -> Any:
    """Return the `peft.MissConfig` of the method over the layers called `targets`."""
    import peft

    return peft.MissConfig(
        r=method.r,
        miss_dropout=method.dropout,
        target_modules=targets,
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
    )


def peft_settings(settings: AdapterSettings) -> Any:
    """Return the `peft.MissConfig` or `peft.LoraConfig` of checked settings."""
    import peft

    return (peft.MissConfig if settings.miss else peft.LoraConfig)(**settings.for_peft())


def require_linears(base: Any, method: MethodTable, targets: list[str]) -> None:
    """Raise `ConfigError` if PEFT has no MiSS for a layer, or it has fewer inputs than r."""
    for name, module in base.named_modules():
        if not any(name == one or name.endswith(f".{one}") for one in targets):
            continue
        if not isinstance(module, torch.nn.Linear):
            raise ConfigError(
                f"method.kind: PEFT has no MiSS for {name}, a {type(module).__name__}; take lora"
            )
        if module.in_features < method.r:
            raise ConfigError(
                f"method.r: {name} has {module.in_features} inputs, and MiSS needs at least `r`; "
                f"set `r` to {module.in_features} or less"
            )


def merge_block(weight: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Let PEFT merge one matrix [r, rows] into a weight [rows, columns], in float32.

    Raises:
        ValueError: the weight has other rows, or is a packed one.
    """
    from peft import MissConfig, inject_adapter_in_model

    if weight.dim() != 2 or len(weight) != block.shape[1] or not weight.is_floating_point():
        raise ValueError(f"{weight.dtype} {tuple(weight.shape)}")
    linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False)
    model = torch.nn.Sequential(linear)
    config = MissConfig(r=len(block), target_modules=["0"])
    layer: Any = inject_adapter_in_model(config, model)[0]
    layer.miss_block["default"] = torch.nn.Parameter(block.float(), requires_grad=False)
    layer.merge()
    merged: torch.Tensor = layer.get_base_layer().weight
    return merged
