"""Builds a base as the trainer loads it, of fake tensors: with shapes and types, without memory.

Which layers are quantised is decided by the very functions that load a base (`trainer/model.py`).
The layers are bitsandbytes' own, so what they compute and keep is theirs; only their weights are
made here, since bitsandbytes' classes of parameters refuse fake tensors.
"""

# ruff: noqa: SLF001 - torch, transformers and bitsandbytes have no public names for these

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from trainer.adapters import quantise
from trainer.adapters.experts import ExpertQuantiser
from trainer.device.count import build_empty
from trainer.method_table import MethodTable, Quant

BLOCK = 64  # weights under one scale
NESTED_BLOCK = 256  # scales under one scale of scales
CODE = 256  # values that a scale in 8 bits can have


class _Weight(FakeTensor):
    """A fake quantised weight, which PEFT copies with its layer for DoRA."""

    def __deepcopy__(self, memo: Any) -> Any:
        copied: Any = torch.nn.Parameter(self.detach().clone(), requires_grad=False)
        copied.__class__ = type(self)
        memo[id(self)] = copied
        copied.__dict__ |= copy.deepcopy(
            {name: one for name, one in vars(self).items() if name in COPIED}, memo
        )
        return copied


COPIED = ("quant_state", "quant_type", "compress_statistics", "quant_storage", "blocksize",
          "bnb_quantized", "CB", "SCB", "has_fp16_weights")  # fmt: skip
"""The attributes of bitsandbytes' parameters."""


class Params4bit(_Weight):
    """A weight in four bits, under the class name by which PEFT knows one."""


class Int8Params(_Weight):
    """A weight in eight bits, under the class name by which PEFT knows one."""


@dataclass(frozen=True)
class EmptyBase:
    """A base on the meta device, whose layers are those that will be quantised."""

    model: Any
    experts: ExpertQuantiser
    method: MethodTable
    compute: torch.dtype

    def materialise(self) -> Any:
        """Return it as frozen fake tensors; call this within a `FakeTensorMode`."""
        _materialise(self.model, self.method, self.compute, self.experts)
        self.model.requires_grad_(requires_grad=False)
        return self.model.train()


def empty_base(
    config: Mapping[str, Any], method: MethodTable, *, compute: torch.dtype, attention: str | None
) -> EmptyBase:
    """Return the base of a `config.json`; `compute` is the type of what is not quantised.

    `attention` is transformers' name of an implementation, None for the one that it takes by
    itself.

    Raises:
        UnknownShapeError, or anything that transformers raises: it cannot build this base.
    """
    model = build_empty(config, attention=attention)
    model.config.dtype = compute
    if model.config.is_encoder_decoder and not hasattr(model.config, "decoder_start_token_id"):
        model.config.decoder_start_token_id = 0  # its value changes no size
    return EmptyBase(model, _quantise_layers(model, method, compute), method, compute)


def is_seq2seq(config: Mapping[str, Any]) -> bool:
    """Tell whether a `config.json` is of an encoder-decoder; its class may say it, not the file."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    default = CONFIG_MAPPING[kind]() if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    return bool(config.get("is_encoder_decoder", getattr(default, "is_encoder_decoder", False)))


def _quantise_layers(model: Any, method: MethodTable, compute: torch.dtype) -> ExpertQuantiser:
    """Replace what is quantised by bitsandbytes' layers, as transformers does while it loads."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    if method.storage is Quant.NONE:
        quantise.simplify(model)
        return ExpertQuantiser()
    four_bit = method.storage.four_bit
    settings = BitsAndBytesConfig(
        load_in_8bit=not four_bit,
        load_in_4bit=four_bit,
        bnb_4bit_quant_type=str(method.storage) if four_bit else "fp4",
        bnb_4bit_use_double_quant=method.double_quant,
        bnb_4bit_compute_dtype=compute,
    )
    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    with quantise.all_matrices(method.storage, on_empty=lambda *_: True) as experts:
        quantizer.preprocess_model(model, dtype=compute, device_map={"": "cpu"})
    quantizer.postprocess_model(model)
    return experts


def _materialise(
    model: Any, method: MethodTable, compute: torch.dtype, experts: ExpertQuantiser
) -> None:
    """Give all that lies on the meta device fake tensors of the CPU, in the types of the run."""
    made: dict[int, Any] = {}
    wide = _kept_in_float32(model, compute)
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in made:
                full = f"{path}.{name}" if path else name
                is_weight = name == "weight"
                if is_weight and type(module).__name__ == "Linear4bit":
                    new = _four_bits(module, method, compute)
                elif is_weight and type(module).__name__ == "Linear8bitLt":
                    new = _eight_bits(module)
                elif full in experts.names:
                    new = None  # quantised below, all at once
                else:
                    new = _plain(
                        tensor,
                        torch.float32 if any(one in full.split(".") for one in wide) else compute,
                    )
                made[id(tensor)] = tensor, new  # the tensor too, so that no other gets its id
            new = made[id(tensor)][1]
            if new is not None:
                setattr(module, name, new)
    _quantise_experts(model, method, compute, experts)


def _kept_in_float32(model: Any, compute: torch.dtype) -> tuple[str, ...]:
    """Return the parts of names that transformers leaves in float32 for this type."""
    strict = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if compute is torch.float16:
        return (*strict, *(getattr(model, "_keep_in_fp32_modules", None) or ()))
    return strict if compute is torch.bfloat16 else ()


def _plain(tensor: Any, kind: torch.dtype) -> Any:
    """Return a fake tensor; a parameter gets the type `kind`, a buffer keeps its own."""
    if not isinstance(tensor, torch.nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    kind = kind if tensor.is_floating_point() else tensor.dtype
    return torch.nn.Parameter(torch.empty(tensor.shape, dtype=kind, device="cpu"), False)


def _four_bits(module: Any, method: MethodTable, compute: torch.dtype) -> Any:
    """Return the packed weight of a layer, and give the layer what dequantises it."""
    packed, state = _packed(torch.Size((module.out_features, module.in_features)), method, compute)
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.__class__ = Params4bit
    weight.quant_state = state
    weight.quant_type = state.quant_type
    weight.compress_statistics = method.double_quant
    weight.quant_storage = torch.uint8
    weight.blocksize, weight.bnb_quantized, weight.module = BLOCK, True, module
    module.quant_state = state
    module.support_avx512bf16_for_cpu = False
    return weight


def _packed(shape: torch.Size, method: MethodTable, compute: torch.dtype) -> tuple[Any, Any]:
    """Return the bytes of a quantised tensor, and the scales as bitsandbytes holds them."""
    from bitsandbytes.functional import QuantState

    size = shape.numel()
    packed = torch.empty(((size + 1) // 2, 1), dtype=torch.uint8, device="cpu")
    scales = -(-size // BLOCK)
    code = torch.empty(16, device="cpu")
    if not method.double_quant:
        absmax = torch.empty(scales, device="cpu")
        offset = nested = None
    else:
        absmax = torch.empty(scales, dtype=torch.uint8, device="cpu")
        offset = torch.empty((), device="cpu")
        nested = QuantState(
            absmax=torch.empty(-(-scales // NESTED_BLOCK), device="cpu"),
            code=torch.empty(CODE, device="cpu"), blocksize=NESTED_BLOCK, dtype=torch.float32,
        )  # fmt: skip
    state = QuantState(
        absmax=absmax, shape=shape, dtype=compute, blocksize=BLOCK, code=code,
        quant_type=str(method.storage), offset=offset, state2=nested,
    )  # fmt: skip
    return packed, state


def _eight_bits(module: Any) -> Any:
    """Return the weight of a layer in eight bits, and give the layer its scales."""
    shape = (module.out_features, module.in_features)
    weight: Any = torch.nn.Parameter(
        torch.empty(shape, dtype=torch.int8, device="cpu"), requires_grad=False
    )
    weight.__class__ = Int8Params
    weight.CB = weight.SCB = None
    weight.has_fp16_weights = False
    module.state.CB = weight.data
    module.state.SCB = torch.empty(module.out_features, device="cpu")
    return weight


def _quantise_experts(
    model: Any, method: MethodTable, compute: torch.dtype, experts: ExpertQuantiser
) -> None:
    """Let the experts of a mixture be dequantised when they are asked for."""
    from bitsandbytes.nn import parametrize as bnb
    from torch.nn.utils import parametrize

    for name in _in_order(model, experts):
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        shape = getattr(module, last).shape
        packed, state = _packed(shape, method, compute)
        setattr(module, last, torch.nn.Parameter(packed, requires_grad=False))
        parametrize.register_parametrization(
            module, last, bnb.Bnb4bitParametrization(state), unsafe=True
        )
        bnb._register_parametrization_hooks(module, last)


def _in_order(model: Any, experts: ExpertQuantiser) -> Iterator[str]:
    yield from (name for name, _ in list(model.named_parameters()) if name in experts.names)
