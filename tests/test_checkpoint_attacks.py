"""A checkpoint that somebody made or altered is refused, and nothing outside it is touched."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import flip, newest, snapshot, store

from trainer.saving.checkpoint import load
from trainer.saving.manifest import FILES, MANIFEST, Damaged, directory_name, verify

LIMIT = 1 << 20


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return the directory of a whole checkpoint of step 3, with one of step 2 beside it."""
    for step in (2, 3):
        store(tmp_path).save(snapshot(step))
    return tmp_path / directory_name(3)


def forge(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter the manifest as an attacker would who knows its one spelling."""
    value = json.loads((directory / MANIFEST).read_bytes())
    change(value)
    (directory / MANIFEST).write_bytes(
        (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
    )


def replace(directory: Path, name: str, data: bytes) -> None:
    """Put `data` in the place of a file and make the manifest agree with it."""
    (directory / name).write_bytes(data)
    fact = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(directory, lambda value: value["files"].update({name: fact}))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "owned"))


def test_a_pickle_in_the_place_of_tensors_is_refused_unopened(good: Path, tmp_path: Path) -> None:
    """A pickle with a matching SHA-256 is damaged data, and the code in it never runs."""
    mark = tmp_path / "owned"
    replace(good, "adapter.safetensors", pickle.dumps(Bomb(mark)))

    with pytest.raises(Damaged):
        load(good, tensor_bytes_max=LIMIT)
    assert not mark.exists()


def test_a_torch_file_in_the_place_of_tensors_is_refused(good: Path, tmp_path: Path) -> None:
    """A file made by torch.save is no checkpoint."""
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    replace(good, "optimizer.safetensors", (tmp_path / "x.pt").read_bytes())

    with pytest.raises(Damaged):
        load(good, tensor_bytes_max=LIMIT)


@pytest.mark.parametrize(
    "name",
    ["../escape", "/etc/passwd", "sub/file", "..", "", "state.json\0", "extra.bin", "\udce9"],
)
def test_a_manifest_may_name_no_other_file(good: Path, name: str) -> None:
    """A name that is not one of the five, however spelled, is refused."""
    fact = {"size": 1, "sha256": "0" * 64}
    forge(good, lambda value: value["files"].update({name: fact}))

    with pytest.raises(Damaged, match="exactly the files"):
        verify(good)


def test_a_manifest_naming_etc_passwd_instead_of_a_file_is_refused(good: Path) -> None:
    """Swapping one of the five names for a foreign path is refused."""
    forge(
        good, lambda value: value["files"].update({"/etc/passwd": value["files"].pop("state.json")})
    )

    with pytest.raises(Damaged, match="exactly the files"):
        verify(good)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST}))
def test_a_symlinked_file_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    """A link to a file of the right contents is refused, whichever file it stands for."""
    (good / name).rename(tmp_path / "moved")
    (good / name).symlink_to(tmp_path / "moved")

    with pytest.raises(Damaged, match="not a plain file"):
        verify(good)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST}))
def test_a_hard_linked_file_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    """A file that also lives elsewhere could change under our hands, so it is refused."""
    os.link(good / name, tmp_path / "twin")

    with pytest.raises(Damaged, match="linked to from elsewhere"):
        verify(good)


def test_a_symlink_to_a_whole_checkpoint_is_refused(good: Path, tmp_path: Path) -> None:
    """A checkpoint directory must be one, not a link to one."""
    moved = tmp_path / "elsewhere" / good.name
    moved.parent.mkdir()
    good.rename(moved)
    good.symlink_to(moved)

    with pytest.raises(Damaged, match="symbolic link"):
        verify(good)
    assert newest(tmp_path) == 2
    assert verify(moved).step == 3


@pytest.mark.parametrize("kind", ["fifo", "directory", "extra"])
def test_foreign_entries_are_refused(good: Path, kind: str) -> None:
    """A pipe (which would block a reader), a directory or one more file make it foreign."""
    odd = good / "odd"
    makers: dict[str, Callable[[Path], None]] = {
        "fifo": os.mkfifo,
        "directory": Path.mkdir,
        "extra": Path.touch,
    }
    makers[kind](odd)

    with pytest.raises(Damaged):
        verify(good)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST}))
def test_a_pipe_in_the_place_of_a_file_is_refused_without_waiting(good: Path, name: str) -> None:
    """No file is opened before its kind is known."""
    (good / name).unlink()
    os.mkfifo(good / name)

    with pytest.raises(Damaged, match="not a plain file"):
        verify(good)


def test_an_absurd_size_is_refused_before_anything_is_read(good: Path) -> None:
    """Ten terabytes, both claimed and (as a hole) really there, are refused at once."""
    with (good / "adapter.safetensors").open("r+b") as file:
        file.truncate(10 << 40)
    forge(good, lambda value: value["files"]["adapter.safetensors"].update(size=10 << 40))

    with pytest.raises(Damaged, match="at most"):
        load(good, tensor_bytes_max=LIMIT)


def test_a_huge_manifest_is_refused_before_it_is_read(good: Path) -> None:
    """A manifest of a terabyte is refused by its size."""
    with (good / MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)

    with pytest.raises(Damaged, match="at most"):
        verify(good)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 60_000,
        b'{"format": "qft-checkpoint", "version": 1, "step": ' + b"9" * 5000 + b', "files": {}}',
        b"\xff\xfe",
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(good: Path, text: bytes) -> None:
    """Whatever else stands in the manifest's place is refused with one kind of error."""
    (good / MANIFEST).write_bytes(text)

    with pytest.raises(Damaged):
        verify(good)


@pytest.mark.parametrize("field", ["size", "sha256"])
@pytest.mark.parametrize("value", [None, -1, True, 1.5, "1", [], {}, "A" * 64, 1 << 60])
def test_facts_of_a_wrong_kind_are_refused(good: Path, field: str, value: object) -> None:
    """A size must be a count and a SHA-256 must be 64 small hex digits."""
    forge(good, lambda v: v["files"]["state.json"].update({field: value}))

    with pytest.raises(Damaged):
        verify(good)


def test_another_spelling_of_the_manifest_is_refused(good: Path) -> None:
    """The manifest has one spelling, so that no bit of it can change unnoticed."""
    value = json.loads((good / MANIFEST).read_bytes())
    (good / MANIFEST).write_text(json.dumps(value))

    with pytest.raises(Damaged, match="altered"):
        verify(good)


def test_a_checkpoint_under_a_newer_name_is_refused(good: Path, tmp_path: Path) -> None:
    """Renaming an old checkpoint does not make it the newest."""
    shutil.copytree(good, tmp_path / directory_name(9))

    with pytest.raises(Damaged, match="about step 3"):
        verify(tmp_path / directory_name(9))
    assert newest(tmp_path) == 3


def test_a_newer_version_is_refused_by_name(good: Path) -> None:
    """A format of the future is refused with its number, not misread."""
    forge(good, lambda value: value.update(version=2))

    with pytest.raises(Damaged, match="version is 2"):
        verify(good)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST}))
def test_a_missing_file_is_noticed(good: Path, tmp_path: Path, name: str) -> None:
    """Without any one of its files a checkpoint is unusable and the one before is taken."""
    (good / name).unlink()

    assert newest(tmp_path) == 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_or_cut_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any one bit flipped, or any tail cut, in any file: refused, and the one before loads."""
    root = tmp_path_factory.mktemp("flip")
    for step in (2, 3):
        store(root).save(snapshot(step))
    name = data.draw(st.sampled_from(sorted(FILES | {MANIFEST})))
    path = root / directory_name(3) / name
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    if data.draw(st.booleans()):
        flip(path, at)
    else:
        path.write_bytes(path.read_bytes()[:at])

    with pytest.raises(Damaged):
        verify(root / directory_name(3))
    assert newest(root) == 2
