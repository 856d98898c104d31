"""Keeps named tensors in a folder of the machine's disk, and gives them back only if all are whole.

A folder of the store is one quantised base: `manifest.json` and files in the safetensors format, of
about `FILE_BYTES` each. The manifest has the SHA-256 of every file and of itself, and is written
last; the folder gets its name when all of it is on the medium. So a process that is killed at any
moment leaves a whole folder or none. What is read is hashed from the very bytes that are used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trainer import untrusted
from trainer.atomic import Disk, clear_partials, partial_of, write_all

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 256 << 20
HEADER_BYTES_MAX = 100 << 20
FILE_BYTES = 256 << 20
"""Files are hashed by several threads, each by one."""
CHUNK_BYTES = 4 << 20
THREADS_MAX = 4
SPARE = 1.5
"""The disk must have room for this many times what is stored."""

MEMORY_SHARE = 0.8
"""Of the free memory of the machine: more than that a base that is read does not take."""

Tensors = Mapping[str, torch.Tensor]

TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The safetensors format's names of types."""
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_LENGTH = struct.Struct("<Q")
_PARTIAL = re.compile(r"\.(.+)\.\d+\.partial")


class NotStorable(Exception):  # noqa: N818 - no error: the base is quantised anew at each start
    """A model has something that cannot be stored; the message names it."""


class NotWhole(Exception):  # noqa: N818 - it names a state of the data, and the reader acts on it
    """What is stored is damaged, foreign or not for this model; nothing of it may be used."""


class NoMemory(Exception):  # noqa: N818 - no error: what is stored stays, and is not used this time
    """What is stored is more than this machine has free memory for."""


class Stopped(Exception):  # noqa: N818 - no error: the process is about to end
    """Writing was given up because it was told to stop."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a folder of the store holds: tensors by name, and what else was recorded of them."""

    tensors: Tensors
    facts: Mapping[str, Any]
    size: int
    """In bytes, of all files of tensors."""


@dataclass(frozen=True, kw_only=True)
class BaseFolder:
    """The folder in which a machine stores quantised bases, one folder for each."""

    root: Path
    disk: Disk
    free_bytes: Callable[[Path], int]
    memory_bytes: Callable[[], int | None] = lambda: None
    """What may be taken of the machine's own memory: all is read there, and goes to a card then."""
    size_max: int = 64 << 30
    """Bytes of all bases together, if there is more than one; the one used longest ago goes."""
    size_least: int = 32 << 20
    """Bytes of a base that is worth it; a smaller one is quantised in no time."""

    def read(self, name: str) -> Stored | None:
        """Return what is stored under `name`, every byte verified; None if nothing is.

        Raises:
            NotWhole: a byte is not what was written; the folder should be removed.
            NoMemory: it would not fit; nothing was read.
            OSError: the disk fails.
        """
        folder = self.root / name
        if not folder.is_dir():
            return None
        body = _read_manifest(folder)
        files = {str(one["name"]): one for one in body["files"]}
        size, free = sum(int(one["size"]) for one in files.values()), self.memory_bytes()
        if free is not None and size > MEMORY_SHARE * free:
            raise NoMemory
        tensors: dict[str, torch.Tensor] = {}
        with ThreadPoolExecutor(max_workers=min(THREADS_MAX, os.cpu_count() or 1)) as pool:
            for part in pool.map(lambda one: _read_file(folder, one), files.values()):
                tensors.update(part)
        for key, stride in body["strides"].items():
            tensors[key] = torch.as_strided(tensors[key], _shape_of(body, key), stride)
        with suppress(OSError):  # only which one is removed first depends on it
            os.utime(folder / MANIFEST)
        return Stored(tensors=tensors, facts=body["facts"], size=size)

    def write(
        self, name: str, tensors: Tensors, facts: Mapping[str, Any], *, stop: threading.Event
    ) -> int:
        """Store `tensors` under `name`, whole or not at all; return the bytes written, 0 if none.

        Nothing is written if `name` is there already, or if the disk lacks room after the bases
        that were used longest ago are removed.

        Raises:
            NotStorable: a tensor has a type or a layout that the format lacks.
            Stopped: `stop` was set; nothing of this is left.
            OSError: the disk fails; nothing is left, or what the next call removes.
        """
        flat = {key: _flat(key, tensor) for key, tensor in tensors.items()}
        size = sum(one.numel() * one.element_size() for one in flat.values())
        if size < self.size_least:
            return 0
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.sweep()
        target = self.root / name
        if target.exists() or not self._make_room(size):
            return 0
        partial = partial_of(target)
        self.disk.make_directory(partial)
        try:
            files = [
                self._write_file(partial / f"base-{number:05d}.safetensors", part, flat, stop)
                for number, part in enumerate(_parts(flat))
            ]
            odd = {key: list(one.stride()) for key, one in tensors.items() if _is_odd(one)}
            shapes = {key: list(tensors[key].shape) for key in odd}
            body = {"files": files, "strides": odd, "shapes": shapes, "facts": dict(facts)}
            self._put(partial / MANIFEST, [memoryview(_manifest(body))], stop)
            self.disk.sync_directory(partial)
            self.disk.rename(partial, target)
            self.disk.sync_directory(self.root)
        except (OSError, Stopped):
            with suppress(OSError):  # gone, or left to the next call
                self.disk.remove_tree(partial)
            raise
        return size

    def remove(self, name: str) -> None:
        """Remove what is stored under `name`; what cannot be removed stays."""
        with suppress(OSError):  # it is never used: it was found damaged before
            self.disk.remove_tree(self.root / name)

    def sweep(self) -> None:
        """Remove what processes that are gone left half-written."""
        for path in self.root.glob(".*.partial"):
            if found := _PARTIAL.fullmatch(path.name):
                clear_partials(self.root / found.group(1), disk=self.disk)

    def _make_room(self, size: int) -> bool:
        """Remove the bases used longest ago until `size` fits; tell whether it does."""
        stored = sorted(self._stored(), key=lambda one: one[0])
        total = sum(bytes_there for _, bytes_there, _ in stored)
        for _, bytes_there, path in stored:
            if total + size <= self.size_max and self.free_bytes(self.root) >= SPARE * size:
                break
            self.disk.remove_tree(path)
            total -= bytes_there
        return self.free_bytes(self.root) >= SPARE * size

    def _stored(self) -> Iterable[tuple[float, int, Path]]:
        """Yield of every base when it was used last, its bytes and its folder."""
        for manifest in self.root.glob(f"*/{MANIFEST}"):
            files = [one.stat() for one in manifest.parent.iterdir()]
            yield manifest.stat().st_mtime, sum(one.st_size for one in files), manifest.parent

    def _write_file(
        self, path: Path, names: list[str], flat: Tensors, stop: threading.Event
    ) -> dict[str, Any]:
        """Write tensors as one file of the safetensors format; return its entry in the manifest."""
        header: dict[str, Any] = {}
        end = 0
        for name in names:
            begin, end = end, end + flat[name].numel() * flat[name].element_size()
            kind, shape = _NAMES[flat[name].dtype], list(flat[name].shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        first = memoryview(_LENGTH.pack(len(text)) + text)
        size, sha256 = self._put(
            path, [first, *(_bytes_of(flat[name].cpu()) for name in names)], stop
        )
        return {"name": path.name, "size": size, "sha256": sha256}

    def _put(
        self, path: Path, views: Iterable[memoryview], stop: threading.Event
    ) -> tuple[int, str]:
        """Write a new file to the medium; return its bytes and their SHA-256."""
        total, size = hashlib.sha256(), 0
        descriptor = self.disk.create(path)
        try:
            for view in views:
                for start in range(0, len(view), CHUNK_BYTES):
                    if stop.is_set():
                        raise Stopped
                    chunk = view[start : start + CHUNK_BYTES]
                    total.update(chunk)
                    write_all(self.disk, descriptor, chunk)
                size += len(view)
            self.disk.sync(descriptor)
        finally:
            self.disk.close(descriptor)
        return size, total.hexdigest()


def _parts(flat: Tensors) -> Iterable[list[str]]:
    """Yield the names of the tensors of each file, in the order given."""
    names: list[str] = []
    size = 0
    for name, tensor in flat.items():
        names.append(name)
        size += tensor.numel() * tensor.element_size()
        if size >= FILE_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def _is_odd(tensor: torch.Tensor) -> bool:
    """Tell whether the elements lie in another order than that of a new tensor."""
    return not tensor.is_contiguous()


def _flat(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor without gaps; of one in another order as a row, as it lies there.

    Raises:
        NotStorable: it has gaps, or the format has no name for its type.
    """
    if tensor.dtype not in _NAMES or tensor.layout is not torch.strided:
        raise NotStorable(f"{name} is a tensor of {tensor.dtype}, {tensor.layout}")
    if not _is_odd(tensor):
        return tensor.detach()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    if sum((size - 1) * stride for size, stride in steps) + 1 != tensor.numel():
        raise NotStorable(f"{name} is a part of a larger tensor")
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor of the processor, to be read or written."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _manifest(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"body": text, "sha256": _sha256(text)}).encode()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    """Return the body of a manifest; raises `NotWhole` if it is not what was written."""
    try:
        data = (folder / MANIFEST).read_bytes()
        value = untrusted.table(untrusted.parse(data, bytes_max=MANIFEST_BYTES_MAX))
        text = str(value.get("body"))
        if _sha256(text) != value.get("sha256"):
            raise NotWhole(f"{MANIFEST} is altered")
        found = untrusted.table(untrusted.parse(text, bytes_max=MANIFEST_BYTES_MAX))
    except FileNotFoundError as error:
        raise NotWhole(f"there is no {MANIFEST}") from error
    except untrusted.NotPlain as error:
        raise NotWhole(f"{MANIFEST}: {error}") from error
    if any(Path(str(one["name"])).name != one["name"] for one in found["files"]):
        raise NotWhole(f"{MANIFEST} names a file elsewhere")
    return found


def _shape_of(body: Mapping[str, Any], name: str) -> list[int]:
    return [int(size) for size in body["shapes"][name]]


def _read_file(folder: Path, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read one file into new tensors; raises `NotWhole` unless every byte is as it was written."""
    path = folder / str(entry["name"])
    total = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {}
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != entry["size"]:
                raise NotWhole(f"{path.name} is cut short")
            for name, kind, shape in _read_header(file, total, int(entry["size"])):
                tensors[name] = torch.empty(shape, dtype=kind)
                _read_into(file, _bytes_of(tensors[name]), total)
    except FileNotFoundError as error:
        raise NotWhole(f"there is no {path.name}") from error
    if total.hexdigest() != entry["sha256"]:
        raise NotWhole(f"{path.name} is altered")
    return tensors


def _read_header(file: BinaryIO, total: Any, size: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Return name, type and shape of the tensors of a file, in the order in which they lie there.

    Nothing is verified yet, so no more is believed than the file has bytes.
    """
    prefix = bytearray(_LENGTH.size)
    _read_into(file, memoryview(prefix), total)
    (length,) = _LENGTH.unpack(prefix)
    if length > min(HEADER_BYTES_MAX, size):
        raise NotWhole("the header is altered")
    text = bytearray(length)
    _read_into(file, memoryview(text), total)
    found = []
    try:
        for name, entry in json.loads(text).items():
            kind, shape = TYPES[entry["dtype"]], [int(one) for one in entry["shape"]]
            if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize > size:
                raise NotWhole("the header is altered")
            found.append((str(name), kind, shape))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotWhole("the header is altered") from error
    if sum(math.prod(shape) * kind.itemsize for _, kind, shape in found) > size:
        raise NotWhole("the header is altered")
    return found


def _read_into(file: BinaryIO, view: memoryview, total: Any) -> None:
    """Fill `view` from a file and hash it; other threads run meanwhile."""
    start = 0
    while start < len(view):
        count = file.readinto(view[start : start + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise NotWhole("a file is cut short")
        total.update(view[start : start + count])
        start += count
