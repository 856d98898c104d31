"""Makes one string of bytes of a checkpoint, to send it to a machine that has an older one."""

from __future__ import annotations

import json
import struct

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from trainer.saving.checkpoint import Snapshot, tensor_chunks
from trainer.saving.manifest import Damaged

_LENGTHS = struct.Struct("<4Q")


def pack(snapshot: Snapshot) -> bytes:
    """Return all of a snapshot as bytes."""
    snapshot.ready()
    rest = {
        "step": snapshot.step,
        "state": snapshot.state,
        "fingerprint": snapshot.fingerprint,
    }
    parts = [
        b"".join(tensor_chunks(snapshot.adapter)),
        b"".join(tensor_chunks(snapshot.optimizer)),
        json.dumps(rest).encode(),
        snapshot.log,
    ]
    return b"".join([_LENGTHS.pack(*map(len, parts)), *parts])


def unpack(data: bytes) -> Snapshot:
    """Return the snapshot that `pack` made bytes of.

    Raises:
        Damaged: they are none.
    """
    try:
        lengths, at, parts = _LENGTHS.unpack_from(data), _LENGTHS.size, list[bytes]()
        for length in lengths:
            parts.append(data[at : at + length])
            at += length
        if at != len(data):
            raise Damaged("a checkpoint that was sent has another length than it says")
        rest = json.loads(parts[2])
        return Snapshot(
            step=rest["step"],
            adapter=parse_tensors(parts[0]),
            optimizer=parse_tensors(parts[1]),
            state=rest["state"],
            log=parts[3],
            fingerprint=rest["fingerprint"],
        )
    except (struct.error, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Damaged(f"a checkpoint that was sent cannot be read: {error}") from error
