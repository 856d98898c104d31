"""Folds an adapter into its 16-bit base, shard by shard on the CPU, into a plain model directory.

    python -m trainer.results.merge --base DIR --adapter DIR --out DIR [--dtype float32]

Never more than one shard of the base is in memory. The base is the 16-bit one, not the 4-bit one
that the adapter was trained on: what rounding that leaves is measured by `parity`, not assumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.nola import FACTS, expand
from trainer.config import ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth", "*.index.json")
PREFIX = "base_model.model."


class CannotMergeError(Exception):
    """This adapter and this base cannot be made one; the message says why."""


@dataclass(kw_only=True)
class Delta:
    """What the adapter adds to one weight matrix."""

    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    def apply(self, weight: torch.Tensor, *, scale: float, transposed: bool) -> torch.Tensor:
        """Return weight + scale x B A in float32; with a magnitude, rows scaled to it (DoRA)."""
        assert self.a is not None
        assert self.b is not None
        change = scale * (self.b.float() @ self.a.float())
        merged = weight.float() + (change.T if transposed else change)
        if self.magnitude is not None:
            if transposed:
                raise CannotMergeError("DoRA on transposed layers (GPT-2) cannot be merged here")
            norm = merged.norm(dim=1, keepdim=True)
            merged = merged * (self.magnitude.float()[:, None] / norm)
        return merged


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter as it lies on the disk."""

    deltas: Mapping[str, Delta]
    replaced: Mapping[str, torch.Tensor]
    scale: float
    transposed: bool
    base: str | None
    used: set[str] = field(default_factory=set)


def read_adapter(directory: Path) -> Adapter:
    """Read LoRA, rsLoRA and DoRA adapters in PEFT's format, and NOLA's.

    Raises:
        CannotMergeError: it is of another kind, or holds something that is not understood.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = (
            expand(directory)
            if (directory / FACTS).is_file()
            else load_file(directory / "adapter_model.safetensors")
        )
    except ConfigError as error:
        raise CannotMergeError(str(error)) from error
    except FileNotFoundError as error:
        raise CannotMergeError(f"{directory} holds no adapter: no {error.filename}") from error
    if config.get("peft_type") != "LORA":
        raise CannotMergeError(f"an adapter of the kind {config.get('peft_type')} cannot be merged")
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise CannotMergeError(f"an adapter with a `{name}` cannot be merged here")
    deltas: dict[str, Delta] = {}
    replaced: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".lora_A.weight"):
            deltas.setdefault(name.removesuffix(".lora_A.weight"), Delta()).a = tensor
        elif name.endswith(".lora_B.weight"):
            deltas.setdefault(name.removesuffix(".lora_B.weight"), Delta()).b = tensor
        elif ".lora_magnitude_vector" in name:
            deltas.setdefault(name.split(".lora_magnitude_vector")[0], Delta()).magnitude = tensor
        elif "lora_" not in name:
            replaced[name] = tensor
        else:
            raise CannotMergeError(f"the adapter holds `{key}`, which is not understood here")
    halves = sorted(name for name, delta in deltas.items() if delta.a is None or delta.b is None)
    if halves:
        raise CannotMergeError(f"the adapter has only half of {', '.join(halves[:5])}")
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return Adapter(
        deltas=deltas,
        replaced=replaced,
        scale=config["lora_alpha"] / root,
        transposed=bool(config.get("fan_in_fan_out")),
        base=config.get("base_model_name_or_path"),
    )


def merge(
    base: Path, adapter: Path, out: Path, *, dtype: torch.dtype | None, say: Callable[[str], None]
) -> int:
    """Write the merged model to `out`, whole or not at all; return how many matrices changed.

    `dtype` is that of the weights written; None keeps each as it is in the base.

    Raises:
        CannotMergeError: something of the adapter has no place in the base, or `out` exists.
    """
    found = read_adapter(adapter)
    shards = shard_names(base)
    if out.exists():
        raise CannotMergeError(f"{out} exists already; name another directory or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        for number, name in enumerate(shards, start=1):
            _merge_shard(base / name, partial / name, found, dtype)
            say(f"shard {number} of {len(shards)} merged")
        unused = sorted({*found.deltas, *found.replaced} - found.used)
        if unused:
            raise CannotMergeError(
                f"the base has no place for {', '.join(unused[:5])} ({len(unused)} in all): "
                f"the adapter was made for {found.base}"
            )
        _copy_the_rest(base, adapter, partial, dtype)
        _sync(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(found.used)


def shard_names(base: Path) -> list[str]:
    """Return the safetensors files of a model directory, in order.

    Raises:
        CannotMergeError: there are none, or the index names one that is missing.
    """
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    else:
        names = [SINGLE]
    missing = [name for name in names if not (base / name).is_file() or Path(name).name != name]
    if missing:
        raise CannotMergeError(f"{base} has no file {missing[0]}")
    return names


def parity(
    reference: Any, merged: Any, prompts: Sequence[Sequence[int]], *, tokens_max: int, eos_id: int
) -> dict[str, Any]:
    """Compare base + adapter with the merged model on prompts, greedily and by their logits.

    Returns rows, how many greedy answers are equal, and the largest and the mean difference of the
    first token's logits.
    """
    from trainer.scoring.decode import Decoder, batches, undisturbed

    decoders = [Decoder(model, eos_ids=[eos_id], pad_id=eos_id) for model in (reference, merged)]
    equal, largest, total, count = 0, 0.0, 0.0, 0
    with undisturbed(reference), undisturbed(merged):
        for batch in batches([len(prompt) for prompt in prompts]):
            asked = [prompts[at] for at in batch]
            readings = [decoder.read(asked) for decoder in decoders]
            gap = (readings[0].logits - readings[1].logits).abs()
            largest = max(largest, float(gap.max()))
            total += float(gap.sum())
            count += gap.numel()
            answers = [
                decoder.write(reading, tokens_max=tokens_max)
                for decoder, reading in zip(decoders, readings, strict=True)
            ]
            equal += sum(one == other for one, other in zip(*answers, strict=True))
    return {
        "rows": len(prompts),
        "equal": equal,
        "share": equal / len(prompts),
        "logits_difference_max": largest,
        "logits_difference_mean": total / count,
    }


def _merge_shard(source: Path, target: Path, adapter: Adapter, dtype: torch.dtype | None) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    written: dict[str, torch.Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for name, tensor in _tensors(file):
            module = name.removesuffix(".weight")
            kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if name in adapter.replaced:
                adapter.used.add(name)
                written[name] = adapter.replaced[name].to(kept)
            elif module in adapter.deltas and name.endswith(".weight"):
                adapter.used.add(module)
                merged = adapter.deltas[module].apply(
                    tensor, scale=adapter.scale, transposed=adapter.transposed
                )
                written[name] = merged.to(kept).contiguous()
            else:
                written[name] = tensor.to(kept)
    save_file(written, target, metadata={"format": "pt"})


def _tensors(file: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
        yield name, file.get_tensor(name)


def _copy_the_rest(base: Path, adapter: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Copy config and tokenizer; the adapter's own tokenizer files win, if it has any."""
    for source in (base, adapter):
        for path in sorted(source.iterdir()):
            named = path.name.startswith(
                ("adapter_", "README", "qft.json", "training_args", "nola.", "ranks.")
            )
            weights = any(path.match(pattern) for pattern in WEIGHTS)
            if path.is_file() and not named and (not weights or path.name == INDEX):
                shutil.copyfile(path, target / path.name)
    config_path = target / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _sync(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main(argv: Sequence[str] | None = None) -> int:
    """Merge as the command line says; exit 78 with the reason if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m trainer.results.merge")
    parser.add_argument("--base", type=Path, required=True, help="directory of the 16-bit base")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"])
    args = parser.parse_args(argv)
    dtype = getattr(torch, args.dtype) if args.dtype else None

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        changed = merge(args.base, args.adapter, args.out, dtype=dtype, say=say)
    except CannotMergeError as error:
        say(str(error))
        return 78
    say(f"{args.out}: {changed} matrices changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
