"""Counts the sizes of a model on the model itself, which is built empty from its config.

    python -m trainer shape --config config.json

Nothing is read but the config: the model lies on torch's `meta` device, without weights, and no
code of a repository is run. Exit codes: 0 counted, 78 the model cannot be built here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.device.model_shape import Block, Experts, Linear, Shape, UnknownShapeError
from trainer.device.shapes import named, read_shape
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.untrusted import NotPlain, parse

CONFIG_BYTES_MAX = 16 << 20
NUMBER_MAX = 1 << 31
LAYERS_MAX = 1 << 12
"""Each layer is built, if empty: more of them than any model has would take all day."""
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
ATTENTION = re.compile(r"(attn|attention|mixer)", re.IGNORECASE)


def find_shape(config: Mapping[str, Any]) -> Shape:
    """Return the sizes of a model: by the formula if there is one, else counted.

    Raises:
        UnknownShapeError: there is no formula, and transformers cannot build the model.
    """
    try:
        return read_shape(config)
    except UnknownShapeError:
        return count_shape(config)


def count_shape(config: Mapping[str, Any]) -> Shape:
    """Return the sizes of the model that transformers builds from a config, counted on it.

    Raises:
        UnknownShapeError: it does not know the architecture, or cannot build it from this config.
    """
    check_numbers(config)
    try:
        model = build_empty(config)
        return _Counted(model).shape(str(config.get("model_type")))
    except UnknownShapeError:
        raise
    except Exception as error:  # whatever a strange config makes the libraries raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnknownShapeError(f"{named(config)} cannot be built here: {reason}") from error


def build_empty(config: Mapping[str, Any], *, attention: str | None = None) -> Any:
    """Return the class that would be trained, without weights, with none of a repository's code.

    `attention` is transformers' name of an implementation (`sdpa`, `eager`), None for its choice.
    """
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        version = transformers.__version__
        raise UnknownShapeError(f"transformers {version} does not know {named(config)}")
    ours = {
        key: value
        for key, value in config.items()
        if key not in {"auto_map", "quantization_config", "dtype", "torch_dtype"}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = CONFIG_MAPPING[kind].from_dict(ours)
        wanted = {} if attention is None else {"attn_implementation": attention}
        with torch.device("meta"):
            return _family(transformers, described).from_config(described, **wanted)


def _family(transformers: Any, described: Any) -> Any:
    """Return the auto class that has this config: for text if there is one, else for pictures."""
    if getattr(described, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    kind = type(described)
    causal = kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if causal or kind not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def check_numbers(value: object, depth: int = 0) -> None:
    """Raise UnknownShapeError if a config has a number that no model has."""
    if depth > 8:
        raise UnknownShapeError("its config.json is nested too deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            is_count = type(inner) is int and re.search(r"layers?$|depth|blocks", str(key))
            if is_count and inner > LAYERS_MAX:
                raise UnknownShapeError(f"its config.json has {inner} as `{key}`")
            check_numbers(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_numbers(inner, depth + 1)
    elif type(value) is int and value > NUMBER_MAX:
        raise UnknownShapeError(f"its config.json has {value}, which is no size")


@dataclass
class _Layer:
    """What was found in one layer, or outside of all of them."""

    linears: list[Linear] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)
    norms: int = 0
    others: int = 0
    width: int = 0


class _Counted:
    """An empty model, with its parameters sorted by layer and kind."""

    def __init__(self, model: Any) -> None:
        from trainer.adapters.quantise import simplify

        simplify(model)
        self._model = model
        self._head = model.get_output_embeddings()
        self._embeddings = model.get_input_embeddings()
        self._text = model.config.get_text_config()
        self._never = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
        self._text_only = model.config is self._text or not hasattr(model.config, "text_config")
        self._decoder = self._path_of(model.get_decoder()) if not self._text_only else ""

    def shape(self, kind: str) -> Shape:
        """Return the sizes; raises UnknownShapeError if the model has no embeddings."""
        if self._embeddings is None or self._embeddings.weight.dim() != 2:
            raise UnknownShapeError("the model has no embeddings of tokens")
        vocabulary, hidden = self._embeddings.weight.shape
        tied = self._head is None or self._head.weight is self._embeddings.weight
        layers = self._layers()
        outside = layers.pop("", _Layer())
        blocks = list(self._blocks(layers))
        if outside.linears or outside.experts:
            blocks.append(self._block(outside, count=1, idle=True))
        found = Shape(
            kind=kind,
            hidden=int(hidden),
            vocabulary=int(vocabulary),
            tied=tied,
            blocks=tuple(blocks),
            encoder_decoder=bool(getattr(self._model.config, "is_encoder_decoder", False)),
        )
        if not found.text_blocks:
            raise UnknownShapeError("the model has no layers that a text passes")
        total = sum(parameter.numel() for parameter in self._model.parameters())
        return Shape(**{**vars(found), "other_parameters": total - found.parameters})

    def _layers(self) -> dict[str, _Layer]:
        """Sort what the model has by layer; what lies outside of all is under an empty name."""
        import torch
        from transformers.pytorch_utils import Conv1D

        layers: dict[str, _Layer] = {}
        for path, module in self._model.named_modules():
            place = re.match(r"(.*?\.\d+)(?:\.|$)", path)
            layer = layers.setdefault(place[1] if place else "", _Layer())
            kind = type(module)
            if module is self._head or module is self._embeddings:
                continue
            if kind is torch.nn.Linear or kind is Conv1D:
                self._add_linear(layer, path, module)
                continue
            layer.norms += self._is_norm(module)
            for name, tensor in module.named_parameters(recurse=False):
                stack = tensor.dim() == 3 and len(tensor) > 1 and "expert" in kind.__name__.lower()
                if stack:
                    self._add_experts(layer, name, tensor)
                elif place:
                    layer.others += tensor.numel()
        return layers

    def _add_linear(self, layer: _Layer, path: str, module: Any) -> None:
        rows, columns = module.weight.shape
        if type(module).__name__ == "Conv1D":
            rows, columns = columns, rows
        name = path.rpartition(".")[2]
        layer.linears.append(
            Linear(name=name, columns=columns, rows=rows, bias=module.bias is not None)
        )
        if not ATTENTION.search(path):
            layer.width = max(layer.width, rows, columns)

    def _add_experts(self, layer: _Layer, name: str, tensor: Any) -> None:
        count, first, second = tensor.shape
        chosen = min(self._size(*CHOSEN) or count, count)
        layer.experts.append(
            Experts(name=name, columns=second, rows=first, count=count, chosen=chosen)
        )

    def _blocks(self, layers: Mapping[str, _Layer]) -> Iterator[Block]:
        """Yield the layers, equal ones together."""
        kinds = Counter[Block]()
        for path, layer in layers.items():
            if layer.linears or layer.experts or layer.others:
                idle = bool(self._decoder) and not path.startswith(f"{self._decoder}.")
                kinds[self._block(layer, count=1, idle=idle)] += 1
        for block, count in kinds.items():
            yield Block(**{**vars(block), "count": count})

    def _block(self, layer: _Layer, *, count: int, idle: bool) -> Block:
        heads = self._size("num_attention_heads", "n_head", "num_heads")
        hidden = self._size("hidden_size", "n_embd", "d_model")
        head = self._size("head_dim") or (hidden // heads if heads else 0)
        groups = self._size("num_key_value_heads") or heads
        names = {one.name for one in layer.linears}
        routed = sum(one.active_weights for one in layer.experts) // max(3 * hidden, 1)
        return Block(
            count=count,
            linears=tuple(layer.linears),
            experts=tuple(layer.experts),
            norms=layer.norms,
            queries=heads * head or hidden,
            keys=groups * head or hidden,
            feed_forward=max(layer.width, routed),
            gated=bool(names & {"gate_proj", "gate_up_proj", "w1"}) or bool(layer.experts),
            others=layer.others,
            never_quantised=tuple(name for name in self._never if name in names),
            idle=idle,
        )

    def _is_norm(self, module: Any) -> bool:
        """Tell whether a module is a norm of whole vectors, not of the heads inside of them."""
        weight = getattr(module, "weight", None)
        norm = "norm" in type(module).__name__.lower()
        size = 0 if weight is None else weight.numel()
        return norm and size == int(self._embeddings.weight.shape[1])

    def _size(self, *keys: str) -> int:
        """Return the first of these numbers of the config, 0 if it has none for all layers."""
        for key in keys:
            try:
                value = getattr(self._text, key, None)
            except RuntimeError:  # each layer has its own: Gemma 4
                continue
            if type(value) is int:
                return value
        return 0

    def _path_of(self, wanted: Any) -> str:
        return next((path for path, one in self._model.named_modules() if one is wanted), "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the config to count by."""
    parser.add_argument("--config", type=Path, required=True, help="a base's config.json")


def run(args: argparse.Namespace) -> int:
    """Print the sizes of a model as JSON; raises `ConfigError` if it cannot be built here."""
    try:
        config = parse(args.config.read_bytes(), bytes_max=CONFIG_BYTES_MAX)
        if not isinstance(config, dict):
            raise ConfigError([f"{args.config} describes no model"])
        shape = find_shape(config)
    except (UnknownShapeError, NotPlain, OSError) as error:
        raise ConfigError([str(error)]) from error
    sys.stdout.write(json.dumps(shape.to_plain()) + "\n")
    return ExitCode.DONE
