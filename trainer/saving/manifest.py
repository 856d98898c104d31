"""Verifies a checkpoint against its manifest before a byte of the rest is used.

The format is described in `docs/checkpoint.md`. This half needs no torch, so any machine that holds
a checkpoint can verify it. A directory is treated as if an attacker had made it: names are a closed
list, links and special files are refused, sizes are bounded before anything is read, and every file
is hashed and used from the same bytes in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer import untrusted
from trainer.rundir.status import last_step, parse_log

FORMAT = "qft-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
LOG = "metrics.jsonl"
FINGERPRINT = "fingerprint.json"
FILES = frozenset({ADAPTER, OPTIMIZER, STATE, LOG, FINGERPRINT})

MANIFEST_BYTES_MAX = 64 << 10
TEXT_BYTES_MAX = 1 << 30  # a log of a million steps is 250 MB
TENSOR_BYTES_MAX = 64 << 30  # far above any adapter; a caller that knows the model passes less

_NAME = re.compile(r"step-(\d{8})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):  # noqa: N818 - it names a state of the data, and the loader acts on it
    """A checkpoint is torn, altered, foreign or forged; nothing of it may be used."""


@dataclass(frozen=True, kw_only=True)
class FileFact:
    """Size (bytes) and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a checkpoint: its step and the fact of every file."""

    step: int
    files: Mapping[str, FileFact]

    def to_bytes(self) -> bytes:
        """Return the one spelling of this manifest; any other spelling is refused on reading."""
        files = {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()}
        value = {"format": FORMAT, "version": VERSION, "step": self.step, "files": files}
        return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def directory_name(step: int) -> str:
    """Return the name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step that a checkpoint's name tells, or None if it is not such a name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def steps_present(root: Path) -> list[int]:
    """List the steps that `root` has a checkpoint of, newest first, whether whole or not."""
    if not root.is_dir():
        return []
    steps = (step_of(entry.name) for entry in root.iterdir())
    return sorted((step for step in steps if step is not None), reverse=True)


def read_verified(
    directory: Path, *, tensor_bytes_max: int = TENSOR_BYTES_MAX
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the verified bytes of every file, or raise `Damaged`."""
    manifest = _read_manifest(directory)
    contents: dict[str, bytes] = {}
    for name, fact in manifest.files.items():
        limit = tensor_bytes_max if name.endswith(".safetensors") else TEXT_BYTES_MAX
        if fact.size > limit:
            raise Damaged(f"{name} claims {fact.size} bytes; at most {limit} make sense")
        data = _read(directory / name, fact.size)
        if hashlib.sha256(data).hexdigest() != fact.sha256:
            raise Damaged(f"{name} is not what was saved: its SHA-256 differs")
        contents[name] = data
    return manifest, contents


def verify(directory: Path, *, tensor_bytes_max: int = TENSOR_BYTES_MAX) -> Manifest:
    """Check the whole of `directory` and return its manifest, or raise `Damaged`."""
    return read_verified(directory, tensor_bytes_max=tensor_bytes_max)[0]


def verify_resumable(directory: Path, *, tensor_bytes_max: int = TENSOR_BYTES_MAX) -> Manifest:
    """Check all that `verify` does, and that the contents are of the very step, or raise `Damaged`.

    A manifest only tells that nothing was altered since; whoever made it may have called an old
    state a new one. Then a trainer would refuse it, after better ones were rotated away.
    """
    manifest, contents = read_verified(directory, tensor_bytes_max=tensor_bytes_max)
    try:
        state = untrusted.table(untrusted.parse(contents[STATE], bytes_max=TEXT_BYTES_MAX))
        untrusted.parse(contents[FINGERPRINT], bytes_max=TEXT_BYTES_MAX)
    except untrusted.NotPlain as error:
        raise Damaged(f"its state cannot be read: {error}") from error
    counted = untrusted.whole(untrusted.table(state.get("counters")).get("step"))
    if counted != manifest.step:
        raise Damaged(f"its state is of step {counted}")
    lines = len(parse_log(contents[LOG]))
    if lines != manifest.step or last_step(contents[LOG]) != manifest.step:
        raise Damaged(f"its log has {lines} lines")
    for name in (ADAPTER, OPTIMIZER):
        _check_tensors(name, contents[name])
    return manifest


def _check_tensors(name: str, data: bytes) -> None:
    """Raise `Damaged` unless `data` is framed as safetensors: a table, then the bytes it tells of.

    Format: https://huggingface.co/docs/safetensors.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise Damaged(f"{name} holds no tensors")
    try:
        header = untrusted.parse(data[8 : 8 + length], bytes_max=TEXT_BYTES_MAX)
    except untrusted.NotPlain as error:
        raise Damaged(f"{name} holds no tensors: {error}") from error
    ends = [0]
    for key, row in untrusted.table(header).items():
        offsets = untrusted.table(row).get("data_offsets")
        if key == "__metadata__":
            continue
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or untrusted.whole(offsets[1]) is None
        ):
            raise Damaged(f"{name} has a tensor without a place")
        ends.append(offsets[1])
    if not isinstance(header, dict) or max(ends) != len(data) - 8 - length:
        raise Damaged(f"{name} does not end where its tensors do")


def _read_manifest(directory: Path) -> Manifest:
    """Return the manifest once names, kinds and sizes of all files agree with it."""
    try:
        entries = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(directory)}
        if stat.S_ISLNK(directory.lstat().st_mode):
            raise Damaged("it is a symbolic link")
    except OSError as error:
        raise Damaged(f"it cannot be listed: {error.strerror}") from error
    for name, found in entries.items():
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{name!r} is not a plain file")
        if found.st_nlink != 1:
            raise Damaged(f"{name!r} is linked to from elsewhere")
    if MANIFEST not in entries:
        raise Damaged("it has no manifest, so the save never ended")
    size = entries[MANIFEST].st_size
    if size > MANIFEST_BYTES_MAX:
        raise Damaged(f"its manifest has {size} bytes; at most {MANIFEST_BYTES_MAX} make sense")
    manifest = parse_manifest(_read(directory / MANIFEST, size))
    if directory_name(manifest.step) != directory.name:
        raise Damaged(f"its manifest is about step {manifest.step}")
    if set(entries) != FILES | {MANIFEST}:
        odd = sorted(set(entries) ^ (FILES | {MANIFEST}))
        raise Damaged(f"files are missing or foreign: {', '.join(map(repr, odd[:5]))}")
    for name, fact in manifest.files.items():
        if entries[name].st_size != fact.size:
            raise Damaged(f"{name} has {entries[name].st_size} bytes, {fact.size} were saved")
    return manifest


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest spelled by `data`, or raise `Damaged`."""
    try:
        value = untrusted.parse(data, bytes_max=MANIFEST_BYTES_MAX)
    except untrusted.NotPlain as error:
        raise Damaged(f"its manifest is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise Damaged("its manifest is of another format")
    if value.get("version") != VERSION:
        found = ascii(value.get("version"))[:40]
        raise Damaged(f"its version is {found}, this program reads {VERSION}")
    step, files = value.get("step"), value.get("files")
    if not (isinstance(step, int) and _is_count(step) and isinstance(files, dict)):
        raise Damaged("its manifest tells no step and no files")
    if set(files) != FILES:
        raise Damaged("its manifest does not name exactly the files of a checkpoint")
    facts: dict[str, FileFact] = {}
    for name, fact in files.items():
        if not (
            isinstance(fact, dict)
            and _is_count(fact.get("size"))
            and isinstance(fact.get("sha256"), str)
            and _SHA256.fullmatch(fact["sha256"])
        ):
            raise Damaged(f"its manifest tells no size and SHA-256 of {name}")
        facts[name] = FileFact(size=fact["size"], sha256=fact["sha256"])
    manifest = Manifest(step=step, files=facts)
    if manifest.to_bytes() != data:
        raise Damaged("its manifest was altered")
    return manifest


def _is_count(value: object) -> bool:
    """Tell whether `value` is a whole number from 0 to 2^53 (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 53


def _read(path: Path, size: int) -> bytes:
    """Read exactly `size` bytes from the plain file `path`, never through a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise Damaged(f"{path.name} changed while it was being read")
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise Damaged(f"{path.name} changed while it was being read")
    return data
