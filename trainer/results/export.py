"""Writes a plain LoRA adapter, which any PEFT loads, from what a method of ours left.

From a DyLoRA run at any rank, from a NOLA run by expanding it; the adapters of all other methods
are plain already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.dylora import CONFIG, RANKS, TENSORS, VERSION, WHOLE, cut
from trainer.adapters.nola import FACTS, expand
from trainer.adapters.settings import BYTES_MAX, RANK_MAX, read_settings
from trainer.atomic import RealDisk, clear_partials, partial_of
from trainer.config import ConfigError
from trainer.exit_codes import ExitCode
from trainer.text import positive
from trainer.untrusted import NotPlain, parse, table, whole


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and where."""

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
    settings = read_settings(adapter).to_json()
    if (adapter / FACTS).is_file():
        if rank not in {None, settings["r"]}:
            raise ConfigError(["--rank: the parts of a NOLA adapter cannot be separated by rank"])
        return _write(out, settings, expand(adapter))
    if not (adapter / RANKS).is_file():
        if rank not in {None, settings.get("r")}:
            raise ConfigError(
                [f"--rank: this adapter has rank {settings.get('r')} only; train with qdylora"]
            )
        return _write(out, settings, _load(adapter / TENSORS))
    best = whole(_read(adapter / RANKS, "").get("best"), most=RANK_MAX)
    return export_rank(adapter, rank or best or 0, out)


def export_rank(adapter: Path, rank: int, out: Path) -> Exported:
    """Write A[:rank] and B[:, :rank] of a DyLoRA adapter as a LoRA of that rank and the same alpha.

    Raises:
        ConfigError: it is no DyLoRA adapter, has no such rank, or its columns count otherwise.
    """
    told = _read(adapter / RANKS, "only a DyLoRA adapter has several ranks")
    settings = read_settings(adapter).to_json()
    if told.get("version") != VERSION:
        raise ConfigError([f"{adapter / RANKS} is of another qft; use the one that trained it"])
    most = whole(told.get("r"), most=RANK_MAX)
    if most is None:
        raise ConfigError([f"{adapter / RANKS} tells no rank"])
    if not 1 <= rank <= most:
        raise ConfigError([f"--rank: {rank} is not one of 1 to {most}"])
    return _write(out, {**settings, "r": rank}, cut(_load(adapter / WHOLE), rank))


def _read(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        return table(parse(path.read_bytes(), bytes_max=BYTES_MAX))
    except FileNotFoundError:
        raise ConfigError([f"{path.parent}: {otherwise}"]) from None
    except (OSError, NotPlain) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _write(out: Path, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Exported:
    from safetensors.torch import save_file

    disk = RealDisk()
    clear_partials(out, disk=disk)
    partial = partial_of(out)
    partial.mkdir(parents=True)
    try:
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        save_file(dict(tensors), partial / TENSORS, metadata={"format": "pt"})
        for path in sorted(partial.iterdir()):
            with path.open("rb") as file:
                disk.sync(file.fileno())
        disk.sync_directory(partial)
        disk.rename(partial, out)
        disk.sync_directory(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    return Exported(directory=out, rank=int(settings["r"]), bytes=size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which rank is written, and where to."""
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
