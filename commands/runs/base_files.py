"""Looks at the files of a base model without loading them: are they whole, and are they it at all?

What is wrong with them would otherwise show on a machine that bills. A safetensors file says in its
first bytes how long it is (the format's own description: 8 bytes, a JSON header of that length, the
tensors), so no library is needed to see that it was cut.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trainer.data.placeholder_files import describe_placeholder

NEVER_LOADED = (
    *(".*", "*.md", "LICENSE*", "onnx", "openvino", "coreml", "original", "runs", "checkpoint-*"),
    *("global_step*", "optimizer*.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"),
    *("rng_state*.pth", "training_args.bin", "events.out.tfevents.*"),
    *("*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*.tflite"),
)
"""What lies in a base's folder for others: its history, how it was trained, other programs' copies.

None of it is loaded, so it neither travels nor counts for whether the base is still the same.
"""
OLDER_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "consolidated*")
"""The same weights once more, where there are safetensors that are loaded instead."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLDER_SINGLE, OLDER_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LENGTH = struct.Struct("<Q")
HEADER_BYTES_MAX = 100_000_000
"""What the format's library takes at most."""
JSON_BYTES_MAX = 256 << 20


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the files that a base is loaded from, each by its name.

    A base without any weights has none: whether it needs them is the caller's to say.
    """
    found = []
    for path in read_there(folder):
        try:
            problem = describe_placeholder(path) or _file_problem(path)
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        if problem:
            found.append(f"{path.name}: {problem}")
    return [*found, *_missing(folder)]


def has_weights(folder: Path) -> bool:
    """Whether there is a file that weights are loaded from."""
    names = (SINGLE, INDEX, OLDER_SINGLE, OLDER_INDEX)
    return any((folder / name).exists() for name in names)


def weights_bytes(folder: Path) -> int:
    """How large the weights of a base are together."""
    for index, single in ((INDEX, SINGLE), (OLDER_INDEX, OLDER_SINGLE)):
        names = _listed(folder / index) or [single]
        sizes = [(folder / name).stat().st_size for name in names if (folder / name).is_file()]
        if sizes:
            return sum(sizes)
    return 0


def read_there(folder: Path) -> list[Path]:
    """The files of the folder that loading would read; a link that leads nowhere counts."""
    newer = has_newer(folder)
    ignored = (*NEVER_LOADED, *OLDER_WEIGHTS * newer)
    return [
        path
        for path in sorted(folder.iterdir())
        if not any(fnmatchcase(path.name, pattern) for pattern in ignored)
        and (path.is_file() or path.is_symlink() or path.name in {SINGLE, OLDER_SINGLE})
    ]


def has_newer(folder: Path) -> bool:
    """Whether there are safetensors, so that older copies of the same weights are not loaded."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def _file_problem(path: Path) -> str:
    """What is wrong with a file by its kind; empty if that is nothing, or not ours to judge."""
    if not path.is_file():
        return "is no file"
    size = path.stat().st_size
    kind = path.suffix.lower()
    if not size and kind in {".safetensors", ".bin", ".json", ".model"}:
        return "is empty: fetch the file again"
    if kind == ".safetensors":
        return _safetensors(path, size)
    if kind == ".bin" and path.name.startswith("pytorch_model"):
        with path.open("rb") as file:
            start = file.read(4)
        whole = start.startswith((b"PK\x03\x04", b"\x80"))
        return "" if whole else f"is no file of PyTorch: it begins with {start!r}"
    if kind == ".json" and size <= JSON_BYTES_MAX:
        return _json(path)
    return ""


def _json(path: Path) -> str:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error}): fetch the file again"
    return ""


def _safetensors(path: Path, size: int) -> str:
    """What is wrong with a file of tensors, by the lengths that it gives itself."""
    with path.open("rb") as file:
        start = file.read(LENGTH.size)
        if len(start) < LENGTH.size:
            return f"is cut off: {size} bytes are no safetensors file; fetch it again"
        (length,) = LENGTH.unpack(start)
        if length > HEADER_BYTES_MAX:
            return f"is no safetensors file: it begins with {start!r}; fetch it again"
        if length > size - LENGTH.size:
            detail = f"its header alone would have {length} bytes, the file has {size}"
            return f"is cut off, or no safetensors file: {detail}; fetch it again"
        header = file.read(length)
    try:
        table = json.loads(header)
        wanted = LENGTH.size + length + max(_ends(table), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "is no safetensors file: its header cannot be read; fetch it again"
    if wanted > size:
        return f"is cut off: {size} of {wanted} bytes are here; fetch it again"
    if wanted < size:
        return f"is no whole safetensors file: {size - wanted} bytes follow its last tensor"
    return ""


def _ends(table: dict[str, Any]) -> Iterator[int]:
    """Where each tensor of a header ends."""
    for name, entry in table.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            if not 0 <= int(begin) <= int(end):
                raise ValueError(name)
            yield int(end)


def _missing(folder: Path) -> list[str]:
    """The shards that an index lists and that are not there."""
    indexes = [INDEX] if has_newer(folder) else [OLDER_INDEX]
    if (folder / SINGLE).exists():  # then the index is not asked
        return []
    found = []
    for index in indexes:
        for name in _listed(folder / index):
            inside = Path(name).name == name
            if not inside:
                found.append(f"{index}: names `{name}`, which lies outside of the model")
            elif not (folder / name).is_file() and not (folder / name).is_symlink():
                problem = describe_placeholder(folder / name) or "is not there: fetch the file"
                found.append(f"{name}: {problem} (`{index}` lists it)")
    if not has_weights(folder):
        lone = describe_placeholder(folder / SINGLE)
        found += [f"{SINGLE}: {lone}"] if lone else []
    return found


def _listed(index: Path) -> list[str]:
    """The files that an index names; none if it cannot be read, which is told of itself."""
    try:
        table = json.loads(index.read_bytes())
        return sorted({str(name) for name in table["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
