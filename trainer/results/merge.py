"""Merges an adapter into its base, shard by shard on the CPU, to a plain model directory.

    python -m trainer merge --base DIR --adapter DIR --out DIR [--dtype float32]
        [--onto quantized --run-dir DIR]

Never more than one shard of the base is in memory; PEFT merges each layer. The base is the one of
the files, not the 4-bit one that the adapter was trained on, unless `--onto quantized` says so.
What rounding changes is measured by `merge_check`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.methods import saved_format
from trainer.adapters.miss import BLOCK, merge_block
from trainer.adapters.new_tokens import DELTA, TrainedRows, grown_rows, read_rows
from trainer.adapters.settings import BYTES_MAX, RANK_MAX, TARGETS_MAX, TENSORS, read_settings
from trainer.atomic import RealDisk, new_directory
from trainer.base_family import quiet_bitsandbytes
from trainer.device.deferred_modules import defer_modules
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.method_table import EMBEDDINGS, HEADS
from trainer.results.base_weights import (
    INDEX,
    SINGLE,
    NoBaseError,
    read_tensor,
    read_tensors,
    safetensors_name,
    shard_names,
    stored_name,
    tensor_names,
)
from trainer.results.expert_merge import ExpertLayout, ExpertLora, ExpertMerge, empty_model
from trainer.results.quantized_base import MergeBase, QuantizedBase, describe_quantized_base
from trainer.untrusted import number, parse, text, texts, whole

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.index.json")
PREFIX = "base_model.model."
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # layers are `Conv1D`s


class CannotMergeError(NoBaseError):
    """This adapter cannot be merged into this base; the message says why."""


@dataclass(kw_only=True)
class LoraTensors:
    """The tensors of one adapted layer; `magnitude` is DoRA's, `block` the one of MiSS."""

    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    block: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter as read from its directory; `scaling` are the settings of the LoRA's scale."""

    layers: Mapping[str, LoraTensors]
    replaced: Mapping[str, torch.Tensor]
    scaling: Mapping[str, Any]
    transposed: bool
    base: str | None
    rows: Mapping[str, TrainedRows] = field(default_factory=dict)
    """Rows of embedding and head that were trained, by the name of the weight."""
    experts: tuple[str, ...] = ()
    """PEFT's `target_parameters`: the ends of the names of tensors of experts."""


def read_adapter(directory: Path) -> Adapter:
    """Read LoRA, rsLoRA, DoRA and MiSS adapters in PEFT's format, and NOLA's.

    Raises:
        CannotMergeError: it is of another kind, or holds something that is not understood.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    saved = saved_format(directory)
    try:
        config = parse((directory / "adapter_config.json").read_bytes(), bytes_max=BYTES_MAX)
        tensors = (
            load_file(directory / TENSORS) if saved.peft_loads else saved.lora(directory, None)
        )
    except ConfigError as error:
        raise CannotMergeError(str(error)) from error
    except FileNotFoundError as error:
        raise CannotMergeError(f"{directory} holds no adapter: no {error.filename}") from error
    except (SafetensorError, ValueError) as error:
        raise CannotMergeError(f"{directory} holds no whole adapter: {error}") from error
    is_miss = isinstance(config, dict) and config.get("peft_type") == "MISS"
    if is_miss and config.get("init_weights", True) is True:
        config = {**config, "peft_type": "LORA", "lora_alpha": config.get("r")}
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CannotMergeError(f"an adapter of the kind {kind} cannot be merged")
    missing = sorted({"r", "lora_alpha"} - config.keys())
    if missing:
        raise CannotMergeError(f"the config of the adapter has no `{missing[0]}`")
    rank, alpha = whole(config["r"], most=RANK_MAX), number(config["lora_alpha"])
    if not rank or alpha is None:
        raise CannotMergeError("the rank or the alpha in the config of the adapter is no number")
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise CannotMergeError(f"an adapter with a `{name}` cannot be merged here")
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    indices = read_settings(directory).trained_rows if config.get("trainable_token_indices") else ()
    try:
        rows = read_rows(tensors, dict(indices))
    except ValueError as error:
        raise CannotMergeError(f"{directory} holds no whole adapter: {error}") from error
    layers, replaced = _by_layer({k: v for k, v in tensors.items() if not k.endswith(DELTA)})
    rslora = bool(config.get("use_rslora"))
    return Adapter(
        layers=layers,
        replaced=replaced,
        rows=rows,
        scaling={"r": rank, "lora_alpha": alpha, "use_rslora": rslora},
        transposed=bool(config.get("fan_in_fan_out")),
        base=text(config.get("base_model_name_or_path")),
        experts=texts(config.get("target_parameters") or [], most=TARGETS_MAX) or (),
    )


def _by_layer(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, LoraTensors], dict[str, torch.Tensor]]:
    """Return the tensors of every adapted layer, and those that replace one of the base.

    Raises:
        CannotMergeError: one is not understood, or a layer has only half of its own.
    """
    layers: dict[str, LoraTensors] = {}
    replaced: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".lora_A.weight"):
            layers.setdefault(name.removesuffix(".lora_A.weight"), LoraTensors()).a = tensor
        elif name.endswith(".lora_B.weight"):
            layers.setdefault(name.removesuffix(".lora_B.weight"), LoraTensors()).b = tensor
        elif ".lora_magnitude_vector" in name:
            name = name.split(".lora_magnitude_vector")[0]
            layers.setdefault(name, LoraTensors()).magnitude = tensor
        elif name.endswith(BLOCK):
            layers.setdefault(name.removesuffix(BLOCK), LoraTensors()).block = tensor
        elif "lora_" not in name:
            replaced[name] = tensor
        else:
            raise CannotMergeError(f"the adapter holds `{key}`, which is not understood here")
    halves = sorted(
        name
        for name, one in layers.items()
        if one.block is None and (one.a is None or one.b is None)
    )
    if halves:
        raise CannotMergeError(f"the adapter has only half of {', '.join(halves[:5])}")
    return layers, replaced


def merge(  # noqa: PLR0913 - three places and how
    base: Path, adapter: Path, out: Path, *, dtype: torch.dtype | None,
    on_message: Callable[[str], None], quantized: QuantizedBase | None = None,
) -> int:  # fmt: skip
    """Write the merged model to `out`, whole or not at all; return how many matrices changed.

    `dtype` is that of the weights written; None keeps each as it is in the base. With
    `quantized`, the adapter is merged into the base as training quantised it, else into the base as
    its files have it.

    Raises:
        CannotMergeError: something of the adapter has no place in the base, or `out` exists.
        NoBaseError: the base cannot be read, or lacks what training quantised.
    """
    found = read_adapter(adapter)
    shards = shard_names(base)
    shard_of = {name: one for one in shards for name in tensor_names(base / one)}
    names = set(shard_of)
    found, experts = _with_experts(found, base, shard_of, quantized)
    found = _matched(found, names, base)
    quantized = quantized.matched_to(names) if quantized else None
    if out.exists():
        raise CannotMergeError(f"{out} exists already; name another directory or remove it")
    sizes = {}
    with new_directory(out, disk=RealDisk()) as directory:
        for number, name in enumerate(shards, start=1):
            target = safetensors_name(name)
            sizes[target] = _merge_shard(
                base / name, directory / target, found, dtype, quantized, experts
            )
            on_message(f"shard {number} of {len(shards)} merged")
        _write_index(directory, sizes)
        rows = max((one.count for one in found.rows.values()), default=0)
        _copy_the_rest(base, adapter, directory, dtype, rows=rows)
    changed = (
        {f"{name}.weight" for name in found.layers} | found.replaced.keys() | found.rows.keys()
    )
    changed |= set(experts.names) if experts else set()
    return len(changed | quantized.weights.keys() if quantized else changed)


def _with_experts(
    adapter: Adapter, base: Path, shard_of: Mapping[str, str], quantized: QuantizedBase | None
) -> tuple[Adapter, ExpertMerge | None]:
    """Separate what an adapter does to linear layers from what becomes of a base's experts."""
    if not adapter.experts and not (quantized and quantized.experts):
        return adapter, None
    layout = ExpertLayout(empty_model(base), shard_of.keys())
    layers, adapted = dict(adapter.layers), {}
    for name, lora in adapter.layers.items():
        stack = layout.stack_of_layer(name, adapter.experts)
        if stack is not None and lora.a is not None and lora.b is not None:
            adapted[stack] = ExpertLora(a=lora.a, b=lora.b)
            del layers[name]
    return replace(adapter, layers=layers), ExpertMerge(
        layout,
        adapted=adapted,
        scaling=adapter.scaling,
        values=quantized.dequantized_experts if quantized else None,
        read=lambda name: read_tensor(base / shard_of[name], name),
    )


def _matched(adapter: Adapter, names: set[str], base: Path) -> Adapter:
    """Return the adapter with the names and the orientation of the weights in the base's files.

    An adapter that was trained on quantised layers does not say that those of the 16-bit base are
    transposed.
    """

    def place(name: str, ending: str) -> str:
        return stored_name(name + ending, names).removesuffix(ending)

    try:
        described = json.loads((base / "config.json").read_text(encoding="utf-8"))
        kind, ties = described.get("model_type"), described.get("tie_word_embeddings")
    except (ValueError, AttributeError, FileNotFoundError) as error:
        raise CannotMergeError(f"{base / 'config.json'} cannot be read: {error}") from error
    matched = replace(
        adapter,
        transposed=adapter.transposed or kind in TRANSPOSED,
        layers={place(name, ".weight"): one for name, one in adapter.layers.items()},
        replaced={place(name, ""): tensor for name, tensor in adapter.replaced.items()},
        rows={place(name, ""): one for name, one in adapter.rows.items()},
    )
    ends = {name.removesuffix(".weight").rpartition(".")[2] for name in matched.replaced}
    if ties and (ends & EMBEDDINGS) and not (ends & HEADS):
        raise CannotMergeError(
            "the embedding and the head of the base are one matrix, and the adapter trained the "
            "embedding alone: merged, they would change together; train with PEFT's "
            "`ensure_weight_tying`, or `method.save` here"
        )
    matched = replace(matched, replaced=_one_of_tied(matched.replaced, names))
    wanted = {f"{name}.weight": name for name in matched.layers}
    wanted |= {name: name for name in (*matched.replaced, *matched.rows)}
    unused = sorted(wanted[name] for name in wanted.keys() - names)
    if unused:
        raise CannotMergeError(
            f"the base has no place for {', '.join(unused[:5])} ({len(unused)} in all): "
            f"the adapter was made for {adapter.base}, and this is {base}"
        )
    return matched


def _one_of_tied(replaced: Mapping[str, torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    """Return the replaced weights without second names of one that the files of the base have.

    Where embedding and head are one matrix, an adapter holds it twice and the base once.
    """
    there = [tensor for name, tensor in replaced.items() if name in names]
    return {
        name: tensor
        for name, tensor in replaced.items()
        if name in names or not any(torch.equal(tensor, one) for one in there)
    }


def _merge_shard(  # noqa: PLR0913, PLR0917 - what goes in, and what is done to it
    source: Path, target: Path, adapter: Adapter, dtype: torch.dtype | None,
    quantized: QuantizedBase | None, experts: ExpertMerge | None,
) -> dict[str, int]:  # fmt: skip
    """Write one merged shard; return the bytes of each of its tensors."""
    from safetensors.torch import save_file

    written: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors(source):
        module = name.removesuffix(".weight")
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        weight = quantized.dequantized(name, tensor) if quantized else tensor
        if name in adapter.replaced:
            written[name] = adapter.replaced[name].to(wanted)
        elif experts is not None and name in experts.names:
            written[name] = experts.merged(name, tensor).to(wanted).contiguous()
        elif name in adapter.rows:
            try:
                written[name] = adapter.rows[name].put_into(weight.float()).to(wanted)
            except ValueError as error:
                raise CannotMergeError(f"{name} of the base is {error}") from error
        elif module in adapter.layers and name.endswith(".weight"):
            written[name] = merge_weight(weight, module, adapter).to(wanted).contiguous()
        else:
            written[name] = weight.to(wanted).contiguous()
    save_file(written, target, metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in written.items()}


def merge_weight(weight: torch.Tensor, name: str, adapter: Adapter) -> torch.Tensor:
    """Let PEFT merge one layer of the adapter into its weight, in float32.

    Raises:
        CannotMergeError: the weight is of another shape, as a packed one is.
    """
    quiet_bitsandbytes()
    from peft import LoraConfig, inject_adapter_in_model

    lora = adapter.layers[name]
    if lora.block is not None:
        try:
            return merge_block(weight, lora.block)
        except ValueError as error:
            raise CannotMergeError(f"{name} of the base is {error}, not the adapter's") from error
    assert lora.a is not None
    assert lora.b is not None
    outputs, inputs = len(lora.b), lora.a.shape[1]
    shape = (inputs, outputs) if adapter.transposed else (outputs, inputs)
    if weight.shape != shape or not weight.is_floating_point():
        raise CannotMergeError(
            f"a weight of the base is {weight.dtype} {tuple(weight.shape)}, and the adapter needs "
            f"{shape}; merge into the 16-bit base, not a packed one or one of another size"
        )
    stored = weight.T if adapter.transposed else weight
    linear = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = _frozen(stored.to(torch.float32, copy=True))
    model = torch.nn.Sequential(linear)
    dora = lora.magnitude is not None
    config = LoraConfig(target_modules=["0"], use_dora=dora, **adapter.scaling)
    layer: Any = inject_adapter_in_model(config, model)[0]
    layer.lora_A["default"].weight = _frozen(lora.a.float())
    layer.lora_B["default"].weight = _frozen(lora.b.float())
    if lora.magnitude is not None:
        layer.lora_magnitude_vector["default"].weight = _frozen(lora.magnitude.float().flatten())
    layer.merge()
    merged: torch.Tensor = layer.get_base_layer().weight
    return merged.T if adapter.transposed else merged


def _frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


def _write_index(target: Path, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Write the index of which file holds which tensor; a single file needs none."""
    if list(sizes) == [SINGLE]:
        return
    index = {
        "metadata": {"total_size": sum(sum(shard.values()) for shard in sizes.values())},
        "weight_map": {name: file for file, shard in sizes.items() for name in sorted(shard)},
    }
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_the_rest(
    base: Path, adapter: Path, target: Path, dtype: torch.dtype | None, *, rows: int
) -> None:
    """Copy config and tokenizer; tokenizer files of the adapter replace those of the base.

    The config says that the embedding has `rows` rows or more.
    """
    for source in (base, adapter):
        for path in sorted(source.iterdir()):
            named = path.name.startswith(
                ("adapter_", "README", "qft.json", "training_args", "nola.", "ranks.")
            )
            weights = any(path.match(pattern) for pattern in WEIGHTS)
            if path.is_file() and not named and not weights:
                shutil.copyfile(path, target / path.name)
    config_path = target / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    if rows:
        grown_rows(config, rows)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare base, adapter, output and number format."""
    parser.add_argument("--base", type=Path, required=True, help="directory of the 16-bit base")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"])
    parser.add_argument(
        "--onto",
        dest="merge_base",
        type=MergeBase,
        choices=list(MergeBase),
        default=MergeBase.ORIGINAL,
    )
    parser.add_argument("--run-dir", type=Path, help="whose config.json says how it was quantised")


def run(args: argparse.Namespace) -> int:
    """Merge, and log how many matrices changed."""
    if args.merge_base is MergeBase.QUANTIZED and args.run_dir is None:
        raise ConfigError(["--onto quantized needs --run-dir"])
    defer_modules()
    dtype = getattr(torch, args.dtype) if args.dtype else None

    def on_message(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        quantized = None
        if args.merge_base is MergeBase.QUANTIZED:
            quantized = describe_quantized_base(
                args.base, args.adapter, args.run_dir, on_message=on_message
            )
        changed = merge(
            args.base,
            args.adapter,
            args.out,
            dtype=dtype,
            on_message=on_message,
            quantized=quantized,
        )
    except OSError as error:
        place = error.filename or args.out
        raise OSError(
            f"{place}: {error.strerror or error}; nothing is left of the merge"
        ) from error
    base = f"the {quantized.quant} base of the training" if quantized else "the original base"
    on_message(f"{args.out}: merged onto {base}, {changed} matrices changed")
    return ExitCode.DONE
