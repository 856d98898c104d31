"""Reads the names and shapes of a base's tensors from the headers of its files, without a library.

With them a layer that is not there, or an adapter that was made for another base, is told before a
machine is rented.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from commands.runs.base_files import HEADER_BYTES_MAX, INDEX, LENGTH, SINGLE
from trainer.adapters.parent import ParentAdapter
from trainer.method_table import EMBEDDINGS, HEADS, MethodTable

PREFIX = "base_model.model."
SHOWN_MAX = 12
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file, or in all those of a base's folder; empty if none.

    What cannot be read counts for nothing: it is told with the other faults of a base's files.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in _files(path):
        try:
            with file.open("rb") as opened:
                (length,) = LENGTH.unpack(opened.read(LENGTH.size))
                table = json.loads(opened.read(min(length, HEADER_BYTES_MAX)))
            found |= {n: tuple(t["shape"]) for n, t in table.items() if n != "__metadata__"}
        except UNREADABLE:
            return {}
    return found


def save_faults(method: MethodTable, folder: Path) -> list[str]:
    """Return which layers of `method.save` the base in `folder` lacks, as far as its files tell."""
    shapes = tensor_shapes(folder) if method.save else {}
    layers = {name.rpartition(".")[0].rpartition(".")[2] for name in shapes}
    if not layers:
        return []
    named = layers | HEADS  # a head that is tied to the embedding is in no file
    wanted = sorted({one for one in method.save if one.rpartition(".")[2] not in named})
    usual = sorted(one for one in layers if one in EMBEDDINGS | HEADS or "norm" in one)
    return [
        f"method.save: the base has no layer called {one}; it has {', '.join(usual[:SHOWN_MAX])}"
        for one in wanted
    ]


def adapter_problem(parent: ParentAdapter, folder: Path) -> str:
    """Say that the matrices of an adapter do not fit the layers of the base in `folder`.

    Empty if they do, or if the files do not tell: their names may be others than in the model.
    """
    base = tensor_shapes(folder)
    for name, shape in tensor_shapes(parent.tensors).items():
        layer, _, side = name.removeprefix(PREFIX).rpartition(".lora_")
        weight = base.get(f"{layer}.weight", base.get(f"{layer.partition('.')[2]}.weight"))
        if weight is None or len(weight) != 2 or len(shape) != 2:
            continue
        width = shape[1] if side.startswith("A") else shape[0]
        if width not in weight:
            return (
                f"method.from: the adapter was made for another base: {layer} has {list(weight)} "
                f"here, and its matrix {side[:1]} {list(shape)}"
            )
    return ""


def _files(path: Path) -> Iterator[Path]:
    """Yield the safetensors files of a base's folder, or the one file."""
    if path.is_file():
        yield path
        return
    if (path / SINGLE).is_file():
        yield path / SINGLE
        return
    try:
        names = set(json.loads((path / INDEX).read_bytes())["weight_map"].values())
    except UNREADABLE:
        return
    yield from (path / str(name) for name in sorted(names, key=str))
