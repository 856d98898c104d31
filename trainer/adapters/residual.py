"""Saves adapters whose first weights were taken out of the base (PiSSA, OLoRA) for that base.

Such an adapter is trained on the residual, the base without B₀·A₀. What it has learnt is
B·A - B₀·A₀, which is a LoRA of twice the rank on the base as everybody has it: the columns of B and
-B₀ side by side, the rows of A above those of A₀ (Meng et al., "PiSSA", 2024, appendix).

The residual is in no file: it follows from base and rank, and every start computes it again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.adapter_method import AdapterMethod
from trainer.adapters.settings import CONFIG, TENSORS
from trainer.errors import ConfigError
from trainer.method_table import AdapterInit, MethodTable


class ResidualLora(AdapterMethod):
    """A LoRA that PEFT trains on the residual of the base, and that is saved for the base."""

    def __init__(self, model: Any, *, method: MethodTable, seed: int) -> None:
        super().__init__(model, method=method, seed=seed)
        import peft

        first = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        self._first = {k: v.detach().cpu().clone() for k, v in first.items() if ".lora_" in k}

    def save(self, directory: Path) -> None:
        """Write a plain LoRA of twice the rank, on the original base."""
        from safetensors.torch import load_file, save_file

        super().save(directory)
        tensors = load_file(directory / TENSORS)
        for name, first in self._first.items():
            sides = (tensors[name], first) if ".lora_A." in name else (tensors[name], -first)
            along = 0 if ".lora_A." in name else 1
            tensors[name] = torch.cat(sides, dim=along).contiguous()
        save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
        settings = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        # The factor of B·A stays what it was: alpha/r, or with rsLoRA alpha/√r.
        settings["lora_alpha"] *= math.sqrt(2) if settings["use_rslora"] else 2
        settings |= {"r": 2 * settings["r"], "init_lora_weights": True}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")


def require_fit(base: Any, method: MethodTable, *, targets: list[str], experts: list[str]) -> None:
    """Raise `ConfigError` if the first weights of the method cannot be had on these layers.

    A layer may have fewer rows or columns than there are ranks to take out; PEFT has none but the
    usual first weights for tensors of `experts`.
    """
    if experts and method.init not in {AdapterInit.DEFAULT, AdapterInit.GAUSSIAN}:
        raise ConfigError(
            f"method.init: {method.init} cannot be had for {', '.join(experts)}; take "
            "`init: default`, or name the layers to adapt in `targets`"
        )
    if not method.init.changes_base:
        return
    for name, module in base.named_modules():
        if any(name == one or name.endswith(f".{one}") for one in targets):
            smallest = min(module.weight.shape)
            if smallest < method.r:
                raise ConfigError(
                    f"method.r: `init: {method.init}` takes {method.r} parts out of each weight, "
                    f"and {name} has {smallest}; set `r` to {smallest} or less"
                )
