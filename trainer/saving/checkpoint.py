"""Writes checkpoints whole or not at all, loads verified ones, and never removes the newest.

A save writes into a temporary directory, brings every file to the medium, writes the manifest last,
renames the directory and brings the new name to the medium. Whatever interrupts it leaves either
the new checkpoint or none; the ones before it are not touched until the new one is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors

from trainer.atomic import Disk, write_all
from trainer.saving.manifest import (
    ADAPTER,
    FINGERPRINT,
    LOG,
    MANIFEST,
    OPTIMIZER,
    STATE,
    Damaged,
    FileFact,
    Manifest,
    directory_name,
    read_verified,
    step_of,
    steps_present,
    verify,
)

Tensors = Mapping[str, torch.Tensor]
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors that removing something of ours can heal


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that must survive, on the host and detached from the training that goes on."""

    step: int
    adapter: Tensors
    optimizer: Tensors
    state: Mapping[str, Any]
    log: bytes
    fingerprint: Mapping[str, Any]
    ready: Callable[[], None] = lambda: None
    """Returns when all tensors are there; a card may still be copying them."""


class Store:
    """The checkpoints of one run, under one directory."""

    def __init__(
        self, root: Path, *, keep: int, disk: Disk, on_message: Callable[[str], None] | None = None
    ) -> None:
        self.root = root
        self._log = on_message or (lambda _text: None)
        self._keep = keep
        self._disk = disk
        self._verified: set[int] = set()

    def save(self, snapshot: Snapshot) -> Manifest:
        """Make `snapshot` durable, then rotate; raise `OSError` and leave no trace if that fails.

        A checkpoint of the same step that verifies is left as it is. On a full disk all but the
        newest one that verifies make room, and the save is tried once more.
        """
        snapshot.ready()
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
            self._disk.sync_directory(self.root.parent)
        try:
            manifest = self._save_once(snapshot)
        except OSError as error:
            if error.errno not in FULL or not self._make_room():
                raise
            self._log("the disk is full: checkpoints but the newest whole one were removed")
            manifest = self._save_once(snapshot)
        self._accept(manifest)
        self._rotate()
        return manifest

    def _save_once(self, snapshot: Snapshot) -> Manifest:
        """Write `snapshot` under its own name, durably, unless it is there; or leave no half."""
        target = self.root / directory_name(snapshot.step)
        if target.exists() or target.is_symlink():
            try:
                manifest = verify(target)
            except Damaged:
                self.set_aside(snapshot.step)
            else:
                self._disk.sync_directory(self.root)  # its name may be newer than the last sync
                return manifest
        temporary = self.root / f".{target.name}.partial"
        self._discard(temporary)
        try:
            manifest = self._write(temporary, snapshot)
            self._disk.rename(temporary, target)
            self._disk.sync_directory(self.root)
        except OSError:
            self._discard(temporary)
            raise
        return manifest

    def load_newest(
        self, *, tensor_bytes_max: int, on_message: Callable[[str], None], below: int | None = None
    ) -> Snapshot | None:
        """Return the newest checkpoint that verifies (of a step under `below`), or None.

        A damaged one is reported, set aside under another name and never looked at again.
        """
        for step in steps_present(self.root):
            if below is not None and step >= below:
                continue
            directory = self.root / directory_name(step)
            try:
                snapshot = load(directory, tensor_bytes_max=tensor_bytes_max)
            except Damaged as error:
                on_message(
                    f"checkpoint {directory.name} is unusable ({error}); trying the one before it"
                )
                self.set_aside(step)
                continue
            self._verified.add(step)
            return snapshot
        return None

    def set_aside(self, step: int) -> None:
        """Rename a checkpoint that cannot be used, so that it counts no more.

        Its step can be saved again, and rotation does not keep it in place of a better one.
        """
        damaged = self.root / directory_name(step)
        aside = damaged.with_name(f"{damaged.name}.damaged")
        self._discard(aside)
        self._verified.discard(step)
        with suppress(OSError):  # on a read-only disk it is skipped by name at every start
            self._disk.rename(damaged, aside)

    def sweep(self) -> None:
        """Remove what an interrupted save left behind; called once, before training."""
        if self.root.is_dir():
            for entry in sorted(self.root.iterdir()):
                if entry.name.startswith(".") and entry.name.endswith(".partial"):
                    self._discard(entry)

    def _write(self, directory: Path, snapshot: Snapshot) -> Manifest:
        """Fill `directory` so that the manifest is the last thing to become durable in it."""
        self._disk.make_directory(directory)
        facts = {
            ADAPTER: self._put(directory / ADAPTER, tensor_chunks(snapshot.adapter)),
            OPTIMIZER: self._put(directory / OPTIMIZER, tensor_chunks(snapshot.optimizer)),
            STATE: self._put(directory / STATE, [_json(snapshot.state)]),
            LOG: self._put(directory / LOG, [memoryview(snapshot.log)]),
            FINGERPRINT: self._put(directory / FINGERPRINT, [_json(snapshot.fingerprint)]),
        }
        manifest = Manifest(step=snapshot.step, files=facts)
        self._put(directory / MANIFEST, [memoryview(manifest.to_bytes())])
        self._disk.sync_directory(directory)
        return manifest

    def _put(self, path: Path, chunks: list[memoryview]) -> FileFact:
        """Write `chunks` to the new file `path`, durably, hashing on the way."""
        digest, size = hashlib.sha256(), 0
        descriptor = self._disk.create(path)
        try:
            for chunk in chunks:
                write_all(self._disk, descriptor, chunk)
                digest.update(chunk)
                size += chunk.nbytes
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        return FileFact(size=size, sha256=digest.hexdigest())

    def _accept(self, manifest: Manifest) -> Manifest:
        self._verified.add(manifest.step)
        return manifest

    def _rotate(self) -> None:
        """Remove all but the newest `keep` verified checkpoints, and what was set aside.

        A step not verified by this process is verified before it counts, so that the ones kept
        are really good; failing to remove something old harms nothing and is left for next time.
        """
        kept = 0
        for step in steps_present(self.root):
            if kept < self._keep and self._is_verified(step):
                kept += 1
            elif kept >= self._keep:
                self._discard(self.root / directory_name(step))
                self._verified.discard(step)
        for entry in sorted(self.root.iterdir()):
            if entry.name.endswith(".damaged"):
                self._discard(entry)

    def _make_room(self) -> bool:
        """Remove all but the newest checkpoint that verifies; tell whether anything went.

        That one is read again before the others go, for nothing else is left then; without one,
        nothing is removed. A newer one that does not verify is set aside, and goes the next time.
        """
        keeping = next((step for step in steps_present(self.root) if self._verifies(step)), None)
        if keeping is None:
            return False
        before = set(self.root.iterdir())
        self._disk.sync_directory(self.root)
        for entry in sorted(before):
            step = step_of(entry.name)
            if step is not None and step > keeping:
                self.set_aside(step)
            elif step != keeping and (step or entry.name.endswith((".damaged", ".partial"))):
                self._discard(entry)
                self._verified.discard(step or 0)
        return not before <= set(self.root.iterdir())

    def _verifies(self, step: int) -> bool:
        """Tell whether a checkpoint verifies now, whatever is remembered of it."""
        self._verified.discard(step)
        return self._is_verified(step)

    def _is_verified(self, step: int) -> bool:
        if step not in self._verified:
            with suppress(Damaged):  # then it is not verified
                self._accept(verify(self.root / directory_name(step)))
        return step in self._verified

    def _discard(self, path: Path) -> None:
        """Remove `path` if it is there; first under another name, so that no half of it counts."""
        try:
            if step_of(path.name) is not None:
                doomed = path.with_name(f".{path.name}.removed.partial")
                self._disk.rename(path, doomed)
                path = doomed
            self._disk.remove_tree(path)
        except OSError:
            return  # not there, or not removable now: `sweep` tries again at the next start


def load(directory: Path, *, tensor_bytes_max: int) -> Snapshot:
    """Return the checkpoint in `directory` after verifying all of it, or raise `Damaged`."""
    manifest, contents = read_verified(directory, tensor_bytes_max=tensor_bytes_max)
    try:
        state, fingerprint = json.loads(contents[STATE]), json.loads(contents[FINGERPRINT])
        adapter, optimizer = parse_tensors(contents[ADAPTER]), parse_tensors(contents[OPTIMIZER])
    except (ValueError, RecursionError, SafetensorError) as error:
        raise Damaged(f"a file in it cannot be parsed: {error}") from error
    if not isinstance(state, dict) or not isinstance(fingerprint, dict):
        raise Damaged("its state is not a table")
    return Snapshot(
        step=manifest.step,
        adapter=adapter,
        optimizer=optimizer,
        state=state,
        log=contents[LOG],
        fingerprint=fingerprint,
    )


def check_same_tensors(what: str, expected: Tensors, found: Tensors) -> None:
    """Raise `Damaged` unless `found` has the very names, shapes and types of `expected`."""
    odd = sorted(set(expected) ^ set(found))
    if odd:
        raise Damaged(f"{what}: tensors are missing or foreign: {', '.join(odd[:5])}")
    for name, want in expected.items():
        got = found[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise Damaged(
                f"{what}: {name} is {got.dtype} {tuple(got.shape)}, "
                f"not {want.dtype} {tuple(want.shape)}"
            )


def tensor_chunks(tensors: Tensors) -> list[memoryview]:
    """Serialise host tensors in the safetensors format, without copying them, in order of name.

    The format (8 bytes little-endian header length, JSON header, raw data) is documented at
    https://huggingface.co/docs/safetensors; writing it here keeps the interpreter free during the
    write and makes the same tensors always the same bytes.
    """
    header: dict[str, dict[str, Any]] = {}
    chunks: list[memoryview] = []
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        if size:
            flat = tensor.reshape(-1).view(torch.uint8)
            chunks.append(memoryview(flat.numpy().data))
        offset += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(struct.pack("<Q", len(text)) + text), *chunks]


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def _json(value: Mapping[str, Any]) -> memoryview:
    """Serialise a table as JSON, the same table always as the same bytes."""
    return memoryview((json.dumps(value, sort_keys=True, indent=1) + "\n").encode())
