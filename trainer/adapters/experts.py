"""Keeps the experts of a mixture in four bits, and lets PEFT adapt them there.

transformers 5 holds all experts of a layer in tensors of three dimensions (expert, rows, columns),
which are no `torch.nn.Linear`. They are quantised one by one while they are read, so that they
never lie in memory together in 16 bits, and are dequantised when a forward pass asks for them, by
bitsandbytes' own parametrisation. PEFT adapts them with `target_parameters`: one pair of low-rank
matrices for each expert.

What is saved is what PEFT alone saves on an unquantised base. PEFT 0.21.2 nests the adapters of two
tensors of one module in another order if these are parametrised, and then no longer removes
what it adds to them in every pass; so it is shown plain tensors, and gets a pass of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils import parametrize

ELEMENTS_MAX = (1 << 31) - 1
"""Of one tensor: bitsandbytes counts elements in 32 bits."""


def expert_tensors(model: Any, *, also: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of experts by their full names, in the model's order.

    Tensors under the names in `also` are such, whatever they look like.
    """
    found = {}
    for path, module in model.named_modules():
        if "expert" not in type(module).__name__.lower():
            continue
        for name, tensor in module.named_parameters(recurse=False):
            is_stack = tensor.dim() == 3 and len(tensor) > 1 and tensor.is_floating_point()
            if is_stack or f"{path}.{name}" in also:
                found[f"{path}.{name}"] = tuple(tensor.shape)
        for name, parametrization in _quantised_in(module):
            found[f"{path}.{name}"] = tuple(parametrization.quant_state.shape)
    return found


def quantisable(model: Any) -> frozenset[str]:
    """Return the names of the experts of an empty model that are quantised when it is loaded."""
    return frozenset(
        name
        for name, shape in expert_tensors(model).items()
        if torch.Size(shape).numel() <= ELEMENTS_MAX
    )


class ExpertQuantiser:
    """Quantises the tensors of experts while transformers loads a base in four bits."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.scales: dict[str, Mapping[str, torch.Tensor]] = {}
        """What bitsandbytes needs to read each tensor, as its `QuantState.as_dict` has it."""

    def watch(self, model: Any) -> None:
        """Take the experts of a model that is still empty for what is to be quantised."""
        self.names = quantisable(model)

    @contextmanager
    def within(self) -> Iterator[None]:
        """While inside, transformers' 4-bit quantiser asks this one about tensors of experts."""
        from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer as Quantizer

        needs, operations = Quantizer.param_needs_quantization, Quantizer.get_quantize_ops

        def also_experts(quantizer: Any, model: Any, param_name: str, **more: Any) -> bool:
            return param_name in self.names or needs(quantizer, model, param_name, **more)

        def both_operations(quantizer: Any) -> Any:
            return _QuantiseOperation(self, operations(quantizer), quantizer.quantization_config)

        patched: Any = Quantizer
        patched.param_needs_quantization = also_experts
        patched.get_quantize_ops = both_operations
        try:
            yield
        finally:
            patched.param_needs_quantization = needs
            patched.get_quantize_ops = operations

    def quantise(self, name: str, tensor: torch.Tensor, config: Any) -> torch.nn.Parameter:
        """Return the four bits of a tensor, and remember its scales."""
        packed, state = quantise_tensor(
            tensor,
            quant_type=config.bnb_4bit_quant_type,
            double_quant=config.bnb_4bit_use_double_quant,
        )
        self.scales[name] = state.as_dict(packed=True)
        return torch.nn.Parameter(packed, requires_grad=False)

    def install(self, model: Any) -> None:
        """Let the loaded model dequantise its experts whenever they are asked for.

        In the model's own order, which is that of the adapters that PEFT nests in each other.
        """
        from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized

        for name in expert_tensors(model, also=self.scales):
            if (scales := self.scales.pop(name, None)) is None:
                continue
            path, _, last = name.rpartition(".")
            replace_parameter_4bit_prequantized(
                model.get_submodule(path),
                last,
                dict(scales),
                model.get_parameter(name).device,
            )


class _QuantiseOperation:
    """The last step of transformers' conversion of a weight; experts are ours, the rest its own."""

    def __init__(self, ours: ExpertQuantiser, operation: Any, config: Any) -> None:
        self._ours = ours
        self._operation = operation
        self._config = config

    def convert(self, input_dict: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Return the quantised tensors under their names."""
        result: dict[str, Any] = {}
        for name, value in input_dict.items():
            if name in self._ours.names:
                tensor = value[0] if isinstance(value, list) else value
                result[name] = self._ours.quantise(name, tensor, self._config)
            else:
                result |= self._operation.convert({name: value}, **more)
        return result


def quantise_tensor(
    tensor: torch.Tensor, *, quant_type: str, double_quant: bool
) -> tuple[torch.Tensor, Any]:
    """Return four bits for each element, and what bitsandbytes needs to read them."""
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(
        tensor.contiguous(), compress_statistics=double_quant, quant_type=quant_type
    )
    return packed, state


def quantised_experts(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield module and name of every tensor of experts that is in four bits."""
    for module in model.modules():
        for name, _ in _quantised_in(module):
            yield module, name


def _quantised_in(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names of a module's own tensors in four bits, each with what dequantises it."""
    if not parametrize.is_parametrized(module):
        return
    from bitsandbytes.nn.parametrize import Bnb4bitParametrization

    for name, steps in module.parametrizations.items():
        if isinstance(steps[0], Bnb4bitParametrization):
            yield name, steps[0]


@contextmanager
def shown_plain(model: Any) -> Iterator[None]:
    """While inside, experts in four bits look like plain tensors of zeros, which need no memory.

    PEFT adapts what it finds here exactly as it would adapt an unquantised base.
    """
    hidden = []
    for module, name in list(quantised_experts(model)):
        dequantise = module.parametrizations[name][0]
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        packed = getattr(module, name)
        state = dequantise.quant_state
        zero = torch.zeros((), dtype=state.dtype, device=packed.device)
        setattr(module, name, torch.nn.Parameter(zero.expand(state.shape), requires_grad=False))
        hidden.append((module, name, packed, dequantise))
    try:
        yield
    finally:
        for module, name, packed, dequantise in hidden:
            setattr(module, name, packed)
            parametrize.register_parametrization(module, name, dequantise, unsafe=True)


def adapt_in_four_bits(model: Any) -> None:
    """Let the adapters that PEFT put on plain experts work on those in four bits."""
    from peft.tuners.lora.layer import ParamWrapper

    from trainer.adapters.expert_wrapper import FourBitParamWrapper

    in_four_bits = {(id(module), name) for module, name in quantised_experts(model)}
    for module in model.modules():
        if type(module) is not ParamWrapper:
            continue
        if (id(module.get_base_layer()), module.parameter_name) in in_four_bits:
            module.__class__ = FourBitParamWrapper


def last_names(model: Any) -> dict[str, str]:
    """Return the last part of the names of experts, and what PEFT's `target_parameters` calls it.

    Two parts are enough to set the experts of a layer apart from a linear layer of the same name.
    """
    found = {}
    for name in expert_tensors(model):
        parts = name.split(".")
        found[parts[-1]] = ".".join(parts[-2:])
    return found


def claimed_by_peft(model: Any, names: list[str]) -> frozenset[str]:
    """Return the names of linear layers under which PEFT 0.21.2 understands experts of this model.

    It reads adapters from before transformers 5 in that way, and would not adapt the layers (those
    of shared experts, or of layers without experts), here or wherever the adapter is loaded.
    """
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    settings = peft.LoraConfig(target_modules=names, task_type="CAUSAL_LM")
    try:
        convert_peft_config_for_transformers(settings, model, None)
    except ValueError:  # half of a pair: it wants the other one too
        settings.target_modules = set()
    return frozenset(names) - frozenset(settings.target_modules or ())
