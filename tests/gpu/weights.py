"""Writes a model of real shape with random weights to the disk, as fast as the disk takes it.

    python -m gpu.weights DIRECTORY MODEL [MODEL …]

A bank of random bfloat16 numbers is cut at another place for every tensor, so that 16 GB need no
16 GB of random numbers. Files are safetensors in several shards with an index, as models come.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gpu.shapes import MODELS, Shape, elements, tensors

BANK = 1 << 24  # numbers
SPREAD = 0.02  # standard deviation, what such models are initialised with
SHARD_BYTES = 2 << 30
WRITERS = 4
ONE = 0x3F80  # 1.0 as bfloat16

Named = tuple[int, str, Shape]


def main(arguments: Sequence[str]) -> int:
    """Write the named models below a directory, each into a folder of its own name."""
    root, *names = arguments
    bank = make_bank()
    for name in names:
        write_model(Path(root) / name, MODELS[name], bank=bank)
    return 0


def make_bank() -> Any:
    """Return normally distributed bfloat16 numbers, as the 16-bit words that they are."""
    numbers = np.random.default_rng(0).standard_normal(BANK, dtype=np.float32) * SPREAD
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def write_model(directory: Path, config: Mapping[str, Any], *, bank: Any) -> Path:
    """Write config, tokenizer, shards and their index; return the directory."""
    from support.tiny import make_tokenizer

    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    make_tokenizer().save_pretrained(str(directory))
    shards = cut(config)
    names = [f"model-{at + 1:05}-of-{len(shards):05}.safetensors" for at in range(len(shards))]
    with ThreadPoolExecutor(WRITERS) as pool:
        done = [
            pool.submit(write_shard, directory / name, shard, bank)
            for name, shard in zip(names, shards, strict=True)
        ]
        total = sum(one.result() for one in done)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {
            tensor: name
            for name, shard in zip(names, shards, strict=True)
            for _, tensor, _ in shard
        },
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def cut(config: Mapping[str, Any]) -> list[list[Named]]:
    """Return the numbered tensors of a model in shards of about `SHARD_BYTES`."""
    shards: list[list[Named]] = [[]]
    size = 0
    for number, (name, shape) in enumerate(tensors(config)):
        if size and size + 2 * elements(shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((number, name, shape))
        size += 2 * elements(shape)
    return shards


def write_shard(path: Path, shard: Sequence[Named], bank: Any) -> int:
    """Write one safetensors file of bfloat16 numbers; return the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for _, name, shape in shard:
        size = 2 * elements(shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, _, shape in shard:
            if len(shape) == 1:  # a norm's
                file.write(np.full(shape, ONE, dtype=np.uint16).tobytes())
                continue
            left, at = elements(shape), number * 7_919_111 % BANK
            while left:
                part = bank[at : at + left]
                file.write(part.data)
                left, at = left - len(part), 0
    return offset


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
