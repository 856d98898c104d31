"""Makes each adapter method from PEFT's LoRA: its settings, its hooks and its saved form.

LoRA, DoRA and rsLoRA are PEFT's own. DyLoRA and NOLA are ours, and differ from LoRA only in what
happens before and after the passes of a step (`AdapterMethod`). All are saved so that PEFT loads
them, if need be after `python -m trainer export`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from trainer.adapters import dylora, miss, nola
from trainer.adapters.adapter_method import AdapterMethod
from trainer.adapters.dylora import DyLora
from trainer.adapters.nola import Nola
from trainer.adapters.parent import ParentAdapter
from trainer.adapters.residual import ResidualLora
from trainer.adapters.saved_modules import SavedModules
from trainer.adapters.settings import RANKS, TENSORS, load_tensors, read_settings
from trainer.config import TrainTable
from trainer.errors import ConfigError
from trainer.method_table import AdapterInit, MethodKind, MethodTable, OptimizerKind

OWN_METHODS: Mapping[MethodKind, Callable[..., AdapterMethod]] = MappingProxyType(
    {MethodKind.DYLORA: DyLora, MethodKind.QDYLORA: DyLora, MethodKind.NOLA: Nola}
)
"""The methods that PEFT alone does not train."""


@dataclass(frozen=True, kw_only=True)
class SavedFormat:
    """How the adapters of a method lie on the disk, beside an `adapter_config.json`."""

    marker: str  # the file by which the format is known
    peft_loads: bool  # whether PEFT alone loads it
    lora: Callable[[Path, int | None], dict[str, torch.Tensor]]
    """The plain LoRA that it stands for, of a rank or of the best one; raises `ConfigError`."""


def peft_tensors(directory: Path, rank: int | None) -> dict[str, torch.Tensor]:
    """Return the tensors that PEFT saved; raise `ConfigError` for any rank but their own."""
    r = read_settings(directory).r
    if rank not in {None, r}:
        raise ConfigError([f"--rank: this adapter has rank {r} only; train with qdylora"])
    return load_tensors(directory / TENSORS)


SAVED_FORMATS = (
    SavedFormat(marker=nola.FACTS, peft_loads=False, lora=nola.lora_tensors),
    SavedFormat(marker=RANKS, peft_loads=True, lora=dylora.lora_tensors),
    SavedFormat(marker=TENSORS, peft_loads=True, lora=peft_tensors),
)


def saved_format(directory: Path) -> SavedFormat:
    """Return the format of the adapter in `directory`; what bears no mark is PEFT's own."""
    found = (one for one in SAVED_FORMATS if (directory / one.marker).is_file())
    return next(found, SAVED_FORMATS[-1])


def settings(  # noqa: PLR0913 - each is a list of what is trained
    method: MethodTable,
    *,
    targets: list[str],
    saved: SavedModules,
    seq2seq: bool,
    experts: list[str] | None = None,
    rows: dict[str, list[int]] | None = None,
) -> Any:
    """Return the `peft.LoraConfig` of the method over the layers called `targets`, or MiSS' own.

    Those called `saved` are trained whole, and `experts` are the tensors of experts that are
    adapted, too; `rows` are those of embedding and head that are trained.
    """
    import peft

    if method.kind is MethodKind.MISS:
        return miss.fresh_settings(method, targets=targets, seq2seq=seq2seq)
    return peft.LoraConfig(
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        trainable_token_indices=rows or None,
        use_dora=method.kind.dora,
        use_rslora=method.kind is MethodKind.RSLORA,
        modules_to_save=[*saved.names] or None,
        ensure_weight_tying=saved.tied,
        init_lora_weights=True if method.init is AdapterInit.DEFAULT else str(method.init),
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
    )


def equip(model: Any, method: MethodTable, train: TrainTable) -> None:
    """Set `qft_method` of a fresh PEFT model to its method; `method_of` returns it."""
    usual = ResidualLora if method.init.changes_base else AdapterMethod
    make = OWN_METHODS.get(method.kind, usual)
    model.qft_method = make(model, method=method, seed=train.seed)


def begin_from(model: Any, parent: ParentAdapter) -> None:
    """Give a fresh PEFT model the weights of `parent`, in the float32 that is trained.

    Raises:
        ConfigError: `parent` has other tensors than the model, or of other shapes.
    """
    import peft

    own = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_tensors(parent.tensors)
    wrong = sorted(own.keys() ^ found.keys()) or sorted(
        name for name, tensor in own.items() if tensor.shape != found[name].shape
    )
    if wrong:
        name = wrong[0]
        shapes = [str(list(one[name].shape)) if name in one else "none" for one in (found, own)]
        raise ConfigError(
            f"method.from: {parent.tensors} does not fit this base: {len(wrong)} tensors "
            f"differ, such as {name}: it has {shapes[0]}, the base needs {shapes[1]}"
        )
    peft.set_peft_model_state_dict(model, found)


def method_of(model: Any) -> AdapterMethod:
    """Return what `equip` gave to this model."""
    found: AdapterMethod = model.qft_method
    return found


def check_device(method: MethodTable, device: torch.device) -> None:
    """Raise `ConfigError` if something chosen cannot work on this device, with the reason."""
    if method.optimizer is OptimizerKind.PAGED_ADAMW8BIT and device.type != "cuda":
        raise ConfigError(["method.optimizer: paged_adamw8bit needs a GPU; use adamw8bit"])


def advice(method: MethodTable) -> list[str]:
    """Return what the user should know of the choice before it costs time, one line each."""
    lines = []
    if method.kind.dora:
        lines.append(
            f"{method.kind}: expect a step to take about 26 % longer than LoRA's and 10 % more "
            "memory (PEFT's own comparison, unquantised)"
        )
    if method.kind.dora and method.kind.quantised:
        lines.append(
            f"{method.kind}: every quantised weight is unpacked in every forward pass, which can "
            "double the time of a step; rslora with `quant: nf4` is the cheaper thing to try first"
        )
    return lines


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether its step is left out where a tensor `found_inf` is 1, unread by the host."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return isinstance(optimizer, torch.optim.AdamW) and fused


def make_optimizer(
    method: MethodTable, train: TrainTable, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of the config over `parameters`.

    Raises:
        ConfigError: it cannot work where the parameters are.
    """
    check_device(method, parameters[0].device)
    arguments: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if method.optimizer is OptimizerKind.ADAMW:
        if parameters[0].device.type == "cuda":  # one kernel, which can leave itself out
            arguments["fused"] = True
        return torch.optim.AdamW(parameters, **arguments)
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, is_paged=method.optimizer is OptimizerKind.PAGED_ADAMW8BIT, **arguments
    )
    return made
