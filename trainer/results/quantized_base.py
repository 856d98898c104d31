"""Dequantises the base as training quantised it, for a merge into those weights.

A weight is quantised by the function that transformers loads a base with, after the same rounding
and into the same empty model as in training, and dequantised as a forward pass does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.experts import quantisable, quantise_tensor
from trainer.adapters.quantise import text_prefix
from trainer.config import PrecisionChoice, TrainerConfig, load_config
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.method_table import Quant
from trainer.results.base_weights import NoBaseError, stored_name
from trainer.rundir.layout import CONFIG, RECEIPT, read_table

CPU = torch.device("cpu")


class MergeBase(StrEnum):
    """The base to merge into: as its files have it, or as training quantised it."""

    ORIGINAL = "original"
    QUANTIZED = "quantized"


@dataclass(frozen=True, kw_only=True)
class QuantizedBase:
    """How training quantised a base: an empty model of it, and the type it was rounded to."""

    quant: Quant
    double_quant: bool
    empty: Any
    dtype: torch.dtype
    weights: Mapping[str, str]  # in the base's files, by name: the parameter of the empty model
    experts: frozenset[str] = frozenset()  # stacks of experts that were quantised, loaded names

    def matched_to(self, names: set[str]) -> QuantizedBase:
        """Return the same for files with these tensor names, maybe without their first part.

        Raises:
            NoBaseError: a quantised weight is in none of the files under its name.
        """
        found = {stored_name(name, names): name for name in self.weights.values()}
        lost = sorted(found.keys() - names)
        if lost:
            raise NoBaseError(
                f"the files of the base have no {', '.join(lost[:5])} ({len(lost)} in all), which "
                "training quantised: they name it otherwise; merge onto the original base"
            )
        return replace(self, weights=found)

    def dequantized(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the base as training computed with it, oriented as in its file.

        What was not quantised is returned as it is. A layer of GPT-2's kind is stored transposed
        and quantised untransposed.
        """
        parameter = self.weights.get(name)
        if parameter is None or not tensor.is_floating_point():
            return tensor
        import bitsandbytes
        from transformers.integrations.bitsandbytes import Bnb4bitQuantize, Bnb8bitQuantize
        from transformers.pytorch_utils import Conv1D

        quantise = (Bnb4bitQuantize if self.quant.four_bit else Bnb8bitQuantize)(None)
        stored = quantise.convert({parameter: tensor.to(self.dtype)}, model=self.empty)[parameter]
        if self.quant.four_bit:
            plain: torch.Tensor = bitsandbytes.functional.dequantize_4bit(
                stored.data, stored.quant_state
            )
        else:
            plain = bitsandbytes.functional.int8_vectorwise_dequant(stored.data, stored.SCB)
        module = self.empty.get_submodule(parameter.rpartition(".")[0])
        module.quant_state = None  # the scales: kept, they would add up to a shard
        return plain.T if issubclass(module.source_cls, Conv1D) else plain

    def dequantized_experts(self, name: str, stack: torch.Tensor) -> torch.Tensor:
        """Return a stack of experts of the loaded model as training computed with it."""
        import bitsandbytes

        if name not in self.experts or not stack.is_floating_point():
            return stack
        packed, state = quantise_tensor(
            stack.to(self.dtype), quant_type=str(self.quant), double_quant=self.double_quant
        )
        plain: torch.Tensor = bitsandbytes.functional.dequantize_4bit(packed, state)
        return plain


def describe_quantized_base(
    base: Path, adapter: Path, run_dir: Path, *, on_message: Callable[[str], None]
) -> QuantizedBase:
    """Describe how the run in `run_dir` quantised the base in `base`; no weight is read.

    Raises:
        ConfigError: the run quantised nothing, or its base cannot be loaded.
    """
    from trainer import model as models

    config = load_config(run_dir / CONFIG)
    quant = config.method.storage
    if quant is Quant.NONE:
        reason = f"method.quant: {config.method.kind} was trained on a base that is not quantised"
        raise ConfigError([f"{reason}; merge onto the original one"])
    if not quant.four_bit:
        on_message(
            f"{quant} also rounds what goes into a layer, which a merged model does not: "
            "it will be near the trained one, not equal to it"
        )
    choice = _precision(config, adapter, on_message)
    source = models.Source(
        name=str(base.absolute()), revision=None, trust_remote_code=config.model.trust_remote_code
    )
    arithmetic = Precision(compute=choice, autocast=False, loss_scaling=False, reason="")
    empty = models.empty_base(source, config.method, precision=arithmetic, device=CPU)
    from bitsandbytes.nn import Linear4bit, Linear8bitLt  # quiet only since a base was asked for

    reading = text_prefix(empty)  # what looks or listens took no part in the training
    names = [
        f"{name}.weight"
        for name, module in empty.named_modules()
        if isinstance(module, Linear4bit | Linear8bitLt) and name.startswith(reading)
    ]
    return QuantizedBase(
        quant=quant,
        double_quant=config.method.double_quant,
        empty=empty,
        dtype=models.DTYPES[choice],
        weights={name: name for name in names},
        experts=quantisable(empty) if quant.four_bit else frozenset(),
    )


def _precision(
    config: TrainerConfig, adapter: Path, on_message: Callable[[str], None]
) -> PrecisionChoice:
    """Return the precision of the training: by the adapter's receipt, else by the config."""
    recorded = read_table(adapter / RECEIPT).get("precision")
    if recorded in set(PrecisionChoice) - {PrecisionChoice.AUTO}:
        return PrecisionChoice(recorded)
    if config.train.precision is not PrecisionChoice.AUTO:
        return config.train.precision
    on_message(
        "the adapter does not tell in which precision it was trained: fp32 is taken, as on a CPU"
    )
    return PrecisionChoice.FP32
