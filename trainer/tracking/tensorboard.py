"""TensorBoard curves in `tb/`, one event file per start; redone steps replace the earlier ones.

The records are spelled here, in a hundred bytes each, because the library's writer takes a second
to import and stops the training when the disk is full. Formats: TFRecord framing with a masked
CRC-32C, and the `Event` message of tensorboard/compat/proto/event.proto.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

CURVES = ("loss", "lr", "grad_norm", "tokens", "validation_loss")


class EventWriter:
    """Appends scalars that TensorBoard shows; what finds no room on the disk is not shown."""

    def __init__(self, directory: Path, *, steps_done: int, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._path = directory / f"events.out.tfevents.{int(wall_s())}.{os.getpid()}"
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        self._append(_field(3, b"brain.Event:2"))
        start = _varint_field(1, 1)  # TensorBoard forgets what an earlier process wrote from here
        self._append(_varint_field(2, steps_done + 1) + _field(7, start))

    def scalars(self, record: dict[str, Any]) -> None:
        """Add the points of one step to the curves; `record` is a line of the metrics log."""
        summary = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", record[name]))
            for name in CURVES
            if record.get(name) is not None
        )
        self._append(_varint_field(2, record["step"]) + _field(5, summary))

    def _append(self, event: bytes) -> None:
        message = b"\x09" + struct.pack("<d", self._wall_s()) + event
        with suppress(OSError), self._path.open("ab") as file:
            file.write(frame(message))


def frame(message: bytes) -> bytes:
    """Wrap a message as a TFRecord: length, its checksum, the message, its checksum."""
    length = struct.pack("<Q", len(message))
    return b"".join(
        (
            length,
            struct.pack("<I", _masked_crc(length)),
            message,
            struct.pack("<I", _masked_crc(message)),
        )
    )


def _masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, rotated and offset as TFRecord wants it."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    """Return the byte table of CRC-32C (Castagnoli, reflected polynomial 0x82F63B78)."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _field(number: int, data: bytes) -> bytes:
    """Spell a length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint_field(number: int, value: int) -> bytes:
    """Spell an integer protobuf field."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
