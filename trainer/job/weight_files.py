"""Looks at a base's files of weights: how large they are, and whether they can be mapped."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from trainer.device.host_memory import FreeMemory
from trainer.errors import DoesNotFit
from trainer.estimate.host import WeightFile, loading_bytes
from trainer.text import gigabytes
from trainer.untrusted import NotPlain, parse, table

HEADER_BYTES_MAX = 100 << 20
_LENGTH = struct.Struct("<Q")


def weight_files(folder: Path) -> list[WeightFile]:
    """Return the files that transformers would load from a folder: safetensors if there are any."""
    for like in ("*.safetensors", "pytorch_model*.bin"):
        found = [_described(path) for path in sorted(folder.glob(like)) if path.is_file()]
        if found:
            return found
    return []


def require_host_memory(
    files: list[WeightFile],
    free: FreeMemory | None,
    *,
    quantised: bool,
    kept_bytes: float = 0.0,
) -> None:
    """Raise `DoesNotFit` if loading these files takes more of the host's memory than is free.

    Otherwise the kernel would end the process, in the middle and without a word.
    """
    need = loading_bytes(files, quantised=quantised, kept_bytes=kept_bytes)
    if free is None or not files or need <= free.bytes:
        return
    pickled = sum(one.size for one in files if not one.mapped)
    why = (
        f" ({gigabytes(pickled)} are pickles of an old format, which have to be read whole; "
        "save the base as safetensors)"
        if pickled
        else ""
    )
    raise DoesNotFit(
        f"loading the base takes about {gigabytes(need)} of this machine's own memory{why}, and "
        f"{gigabytes(free.bytes)} are free of {gigabytes(free.limit_bytes)}: {free.limit}; take "
        "a machine with more memory, or a smaller base"
    )


def _described(path: Path) -> WeightFile:
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return WeightFile(size=size, mapped=zipfile.is_zipfile(path))
    return WeightFile(size=size, largest=max(_tensor_sizes(path), default=None))


def _tensor_sizes(path: Path) -> Iterator[int]:
    """Yield the bytes of each tensor in a safetensors file; none if its header cannot be read."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            header = table(
                parse(file.read(min(length, HEADER_BYTES_MAX)), bytes_max=HEADER_BYTES_MAX)
            )
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield int(end) - int(begin)
    except (OSError, struct.error, NotPlain, KeyError, TypeError, ValueError):
        return  # whoever loads it says what is wrong with it
