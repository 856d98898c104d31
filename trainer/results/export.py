"""Exports a DyLoRA or NOLA adapter as a plain LoRA adapter that any PEFT loads.

From a DyLoRA run at any rank, from a NOLA run by expanding it; the adapters of all other methods
are plain already.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.methods import saved_format
from trainer.adapters.settings import CONFIG, TENSORS, read_settings
from trainer.atomic import RealDisk, new_directory
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.text import positive


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The directory, rank and size of what was written."""

    directory: Path
    rank: int
    bytes: int


def export(adapter: Path, out: Path, *, rank: int | None = None) -> Exported:
    """Write the adapter in the directory `adapter` as a plain LoRA adapter to `out`.

    `out` is made whole or not at all. Without `rank` a DyLoRA adapter is cut at the rank with the
    lowest validation loss.

    Raises:
        ConfigError: there is no adapter, it has no such rank, or `out` exists.
    """
    if out.exists():
        raise ConfigError([f"--out: {out} exists already; name another directory or remove it"])
    settings = read_settings(adapter)
    tensors = saved_format(adapter).lora(adapter, rank)
    ranks = [len(tensor) for name, tensor in tensors.items() if ".lora_A." in name]
    if not ranks or settings.target_parameters:  # experts have r rows each, and are not cut
        ranks = [settings.r]
    return _write(out, {**settings.to_json(), "r": ranks[0]}, tensors)


def _write(out: Path, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Exported:
    from safetensors.torch import save_file

    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    with new_directory(out, disk=RealDisk()) as directory:
        (directory / CONFIG).write_text(text, encoding="utf-8")
        save_file(dict(tensors), directory / TENSORS, metadata={"format": "pt"})
    size = sum(path.stat().st_size for path in out.iterdir())
    return Exported(directory=out, rank=int(settings["r"]), bytes=size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the rank and the directory to write."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where adapter/ lies")
    parser.add_argument("--rank", type=positive, help="of a DyLoRA run; default: the best one")
    parser.add_argument("--out", type=Path, help="new directory; default: exported/ in the run")


def run(args: argparse.Namespace) -> int:
    """Write the plain adapter and print where it is."""
    run_dir = args.run_dir.resolve()
    out = args.out.resolve() if args.out else run_dir / "exported"
    done = export(run_dir / "adapter", out, rank=args.rank)
    sys.stdout.write(f"{done.directory}: rank {done.rank}, {done.bytes} bytes\n")
    return ExitCode.DONE
