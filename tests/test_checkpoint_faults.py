"""A save that is interrupted or refused anywhere leaves the checkpoints before it whole."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from support.checkpoints import LIMIT, flip, newest, snapshot, store
from support.faulty_disk import (
    Died,
    DyingDisk,
    FailingDisk,
    ForgetfulDisk,
    FullDisk,
    SmallDisk,
    bytes_below,
)

from trainer.saving.checkpoint import Snapshot, Store, load
from trainer.saving.manifest import Damaged, directory_name, steps_present, verify


def calls_of_a_save(root: Path) -> list[str]:
    """Return the names of all disk calls of a third save, rotation included."""
    disk = DyingDisk(10**9)
    for step in (1, 2):
        store(root).save(snapshot(step))
    store(root, disk).save(snapshot(3))
    return disk.calls


def test_a_save_makes_everything_durable_in_the_promised_order(tmp_path: Path) -> None:
    """Every file is synced, then the directory, then it is renamed, then the parent is synced."""
    calls = calls_of_a_save(tmp_path)
    last_sync = max(at for at, name in enumerate(calls) if name == "sync")
    rename = calls.index("rename", last_sync)

    assert calls[last_sync : rename + 2] == ["sync", "sync_directory", "rename", "sync_directory"]
    assert calls.count("sync") == 6


@pytest.mark.parametrize("halves", [False, True])
def test_death_at_any_disk_call_loses_no_older_checkpoint(tmp_path: Path, halves: bool) -> None:  # noqa: FBT001 - a parameter of the case
    """Killed at every single call of a save in turn, a fresh process finds step 2 or 3, whole."""
    total = len(calls_of_a_save(tmp_path / "count"))
    found = []
    for calls in range(total):
        root = tmp_path / f"{calls}"
        for step in (1, 2):
            store(root).save(snapshot(step))
        with pytest.raises(Died):
            store(root, DyingDisk(calls, halves=halves)).save(snapshot(3))
        found.append(newest(root))
        store(root).save(snapshot(4))
        assert newest(root) == 4
        assert not [path for path in root.iterdir() if path.name.startswith(".")]

    assert set(found) == {2, 3}
    assert found == sorted(found, key=str)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_at_any_disk_call_loses_no_older_checkpoint(tmp_path: Path, code: int) -> None:
    """With every single call of a save failing in turn, the newest whole checkpoint loads."""
    total = len(calls_of_a_save(tmp_path / "count"))
    for calls in range(total):
        root = tmp_path / f"{calls}"
        for step in (1, 2):
            store(root).save(snapshot(step))
        failing = store(root, FailingDisk(calls, code))
        try:
            failing.save(snapshot(3))
            expected = {3}
        except OSError:
            expected = {2, 3}  # the error may have come after the rename

        assert newest(root) in expected
        left = len([s for s in steps_present(root) if _whole(root, s)])
        assert left >= (2 if code == errno.EIO else 1)  # a full disk may cost the older one
        failing.save(snapshot(4))
        assert newest(root) == 4


def test_a_power_cut_after_a_save_takes_nothing_of_it(tmp_path: Path) -> None:
    """What a finished save wrote survives a power cut that drops everything not synced."""
    disk = ForgetfulDisk()
    saving = store(tmp_path, disk)
    for step in (1, 2, 3, 4):
        saving.save(snapshot(step))
    disk.cut()

    assert newest(tmp_path) == 4


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_no_rubbish(tmp_path: Path) -> None:
    """However little room is left, a save that does not fit leaves the directory as it was."""
    store(tmp_path).save(snapshot(2))
    before = sorted(tmp_path.rglob("*"))
    for room in (0, 1, 100, 500, 1000):
        with pytest.raises(OSError, match="No space left"):
            store(tmp_path, FullDisk(room)).save(snapshot(3))
        assert sorted(tmp_path.rglob("*")) == before

    assert newest(tmp_path) == 2


def room_for(tmp_path: Path, many: float) -> int:
    """Return the bytes of so many checkpoints."""
    store(tmp_path / "measured").save(snapshot(9))
    return int(many * bytes_below(tmp_path / "measured"))


def test_a_disk_too_small_for_one_more_than_kept_saves_all_the_same(tmp_path: Path) -> None:
    """With room for two checkpoints and two to keep, the older one gives way to every save."""
    root = tmp_path / "run"
    messages: list[str] = []
    disk = SmallDisk(root, room_for(tmp_path, 2.5))
    saving = Store(root, keep=2, disk=disk, on_message=messages.append)
    for step in range(1, 7):
        saving.save(snapshot(step))
        assert [s for s in steps_present(root) if not _whole(root, s)] == []

    assert steps_present(root) == [6, 5]
    assert len(list(root.iterdir())) == 2
    assert messages == ["the disk is full: checkpoints but the newest whole one were removed"] * 4


@pytest.mark.parametrize("halves", [False, True])
def test_death_while_room_is_made_loses_nothing_of_the_newest(tmp_path: Path, halves: bool) -> None:  # noqa: FBT001 - a parameter of the case
    """Killed at every call of a save that first finds the disk full, step 2 or 3 is whole."""
    capacity = room_for(tmp_path, 2.5)
    for step in (1, 2):
        store(tmp_path / "begun").save(snapshot(step))
    counting = SmallDisk(tmp_path / "count", capacity)
    shutil.copytree(tmp_path / "begun", tmp_path / "count")
    store(tmp_path / "count", counting).save(snapshot(3))
    assert "refused" in counting.calls
    found = []
    for calls in range(len(counting.calls)):
        root = tmp_path / f"{calls}"
        shutil.copytree(tmp_path / "begun", root)
        with pytest.raises(Died):
            store(root, SmallDisk(root, capacity, calls=calls, halves=halves)).save(snapshot(3))
        found.append(newest(root))
        store(root, SmallDisk(root, capacity)).save(snapshot(4))
        assert newest(root) == 4
        assert not [path for path in root.iterdir() if path.name.startswith(".")]

    assert set(found) == {2, 3}
    assert found == sorted(found, key=str)


def test_a_disk_too_small_for_two_keeps_the_newest_and_says_so(tmp_path: Path) -> None:
    """Where not even one more fits, the save fails, and only the newest whole one is left."""
    root = tmp_path / "run"
    for step in (1, 2, 3):
        store(root).save(snapshot(step))
    saving = store(root, SmallDisk(root, room_for(tmp_path, 1.5)))
    for step in (4, 5):
        with pytest.raises(OSError, match="No space left"):
            saving.save(snapshot(step))

        assert [path.name for path in root.iterdir()] == [directory_name(3)]
    assert newest(root) == 3


def test_room_is_never_made_at_the_cost_of_the_newest_that_verifies(tmp_path: Path) -> None:
    """If the newest went bad since it was saved, the one before it stays until the next save."""
    root = tmp_path / "run"
    saving = store(root, SmallDisk(root, room_for(tmp_path, 2.5)))
    for step in (1, 2):
        saving.save(snapshot(step))
    flip(root / directory_name(2) / "adapter.safetensors", 90)
    with pytest.raises(OSError, match="No space left"):
        saving.save(snapshot(3))
    assert newest(root) == 1
    saving.save(snapshot(4))

    assert newest(root) == 4


def test_rotation_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    """Of many saves the two newest stay."""
    saving = store(tmp_path)
    for step in range(1, 7):
        saving.save(snapshot(step))

    assert steps_present(tmp_path) == [6, 5]


def test_rotation_counts_only_checkpoints_that_verify(tmp_path: Path) -> None:
    """A damaged checkpoint takes no place of a good one when old ones are removed."""
    for step in (1, 2, 3):
        store(tmp_path).save(snapshot(step))
    flip(tmp_path / directory_name(3) / "adapter.safetensors", 90)
    store(tmp_path).save(snapshot(4))

    assert [step for step in steps_present(tmp_path) if _whole(tmp_path, step)] == [4, 2]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """A resumed run that reaches the step of a damaged checkpoint saves it anew."""
    store(tmp_path).save(snapshot(2))
    store(tmp_path).save(snapshot(3))
    flip(tmp_path / directory_name(3) / "optimizer.safetensors", 200)
    assert newest(tmp_path) == 2
    store(tmp_path).save(snapshot(3))

    assert newest(tmp_path) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".damaged")] == []


def test_what_was_saved_is_loaded_with_the_same_bits_and_types(tmp_path: Path) -> None:
    """What is loaded equals what was saved, for every tensor type that an optimizer may hold."""
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int8)
    tensors = {str(kind): torch.arange(7).to(kind).reshape(7, 1) for kind in kinds}
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(5), "mask": torch.ones(2) > 0}
    saved = Snapshot(
        step=7, adapter=tensors, optimizer={}, state={"x": 0.1}, log=b"", fingerprint={}
    )
    store(tmp_path).save(saved)
    found = load(tmp_path / directory_name(7), tensor_bytes_max=LIMIT)

    assert set(found.adapter) == set(tensors)
    for name, tensor in tensors.items():
        assert (found.adapter[name].dtype, found.adapter[name].shape) == (
            tensor.dtype,
            tensor.shape,
        )
        assert torch.equal(found.adapter[name], tensor)
    assert found.state == {"x": 0.1}


def _whole(root: Path, step: int) -> bool:
    try:
        return verify(root / directory_name(step)).step == step
    except Damaged:
        return False
