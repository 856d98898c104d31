"""Control groups of both versions are made in the right place, and only ours are touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.code_eval.cgroups import find_groups
from trainer.code_eval.limits import Limits


def tree(root: Path, *files: str) -> Path:
    """Make empty files below a folder that stands for `/sys/fs/cgroup`."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def own(tmp_path: Path, text: str) -> Path:
    """Make the file that tells in which groups a process is."""
    path = tmp_path / "self"
    path.write_text(text)
    return path


def test_version_1_limits_memory_and_processes_in_two_places(tmp_path: Path) -> None:
    """Below the group of each controller that the process is in, a group of ours is made."""
    root = tree(tmp_path / "v1", "memory/a/b/tasks", "pids/tasks")
    groups = find_groups(
        root=root, own=own(tmp_path, "4:memory:/a/b\n8:pids:/\n0::/\n"), name="ours"
    )

    assert groups is not None
    assert groups.parents == (root / "memory/a/b/ours", root / "pids/ours")


def test_version_1_in_a_container_takes_its_own_root(tmp_path: Path) -> None:
    """The path of the host is not there: what is mounted is the container's own group."""
    root = tree(tmp_path / "v1", "memory/tasks", "pids/tasks")
    groups = find_groups(
        root=root, own=own(tmp_path, "4:memory:/docker/x\n8:pids:/docker/x\n"), name="ours"
    )

    assert groups is not None
    assert groups.parents == (root / "memory/ours", root / "pids/ours")


def test_version_2_divides_a_group_that_is_its_own_alone(tmp_path: Path) -> None:
    """In a scope of its own the process moves into a leaf, and answers get groups beside it."""
    root = tree(tmp_path / "v2", "cgroup.controllers", "x.scope/cgroup.subtree_control")
    (root / "x.scope/cgroup.procs").write_text(f"{os.getpid()}\n")
    groups = find_groups(root=root, own=own(tmp_path, "0::/x.scope\n"), name="ours")

    assert groups is not None
    assert groups.parents == (root / "x.scope/ours",)
    assert (root / "x.scope/parent/cgroup.procs").read_text() == str(os.getpid())
    assert (root / "x.scope/cgroup.subtree_control").read_text() == "+memory +pids"


def test_version_2_leaves_a_group_that_others_are_in_alone(tmp_path: Path) -> None:
    """In a session with other processes the groups are made at the root of the tree."""
    root = tree(tmp_path / "v2", "cgroup.controllers", "session/cgroup.subtree_control")
    (root / "session/cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    groups = find_groups(root=root, own=own(tmp_path, "0::/session\n"), name="ours")

    assert groups is not None
    assert groups.parents == (root / "ours",)
    assert (root / "session/cgroup.subtree_control").read_text() == ""


def test_where_no_group_can_be_made_there_is_none(tmp_path: Path) -> None:
    """A tree that cannot be written to is no error: memory is measured instead."""
    missing = own(tmp_path, "4:memory:/\n8:pids:/\n")

    assert find_groups(root=tmp_path / "nowhere", own=missing, name="ours") is None
    assert find_groups(root=tmp_path / "nowhere", own=tmp_path / "none", name="ours") is None


@pytest.mark.parametrize(
    ("file", "value"),
    [("memory.max", str(2**28)), ("memory.swap.max", "0"), ("pids.max", "66")],
)
def test_limits_are_written_to_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, value: str
) -> None:
    """Memory, swap and the number of processes are those of the limits; two more wait for it."""
    root = tree(tmp_path / "v2", "cgroup.controllers")
    groups = find_groups(root=root, own=own(tmp_path, "0::/\n"), name="ours")
    assert groups is not None
    real = Path.mkdir

    def with_files(path: Path, *arguments: object, **settings: object) -> None:
        real(path, *arguments, **settings)  # type: ignore[arg-type]
        (path / file).touch()  # as the kernel does

    monkeypatch.setattr(Path, "mkdir", with_files)
    group = groups.make("answer", Limits(memory_bytes=2**28))

    assert (group.folders[0] / file).read_text() == value


def test_groups_of_killed_parents_are_removed(tmp_path: Path) -> None:
    """An empty group whose parent of answers is gone goes, that of a living one stays."""
    root = tree(tmp_path / "v2", "cgroup.controllers")
    (root / "qft-answers-4194999").mkdir()
    (root / f"qft-answers-{os.getpid()}").mkdir()
    (root / "somebody-elses").mkdir()
    find_groups(root=root, own=own(tmp_path, "0::/\n"), name="ours")

    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [
        "ours",
        f"qft-answers-{os.getpid()}",
        "somebody-elses",
    ]


def test_a_process_ended_for_memory_is_seen(tmp_path: Path) -> None:
    """Both versions count it under the same word, in files of different names."""
    root = tree(tmp_path / "v2", "cgroup.controllers")
    groups = find_groups(root=root, own=own(tmp_path, "0::/\n"), name="ours")
    assert groups is not None
    group = groups.make("answer", Limits())
    before = group.killed_for_memory()
    (group.folders[0] / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")

    assert (before, group.killed_for_memory()) == (False, True)
