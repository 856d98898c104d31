"""A disk that is too small is noticed, said in bytes, and leaves what was there as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import ssh_servers
from support.trees import read_tree

from remote.errors import NoSpace
from remote.on_machine import tree_ops
from remote.ssh import SshConnection, connect
from remote.sync.api import pull, push
from remote.sync.plan import Progress, SyncOptions

OPTIONS = SyncOptions(chunk_bytes=256 << 10, python=sys.executable)
MB = 1 << 20


@pytest.fixture(scope="module", params=ssh_servers.KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssh_servers.RunningServer]:
    """A server of each kind for the file."""
    with ssh_servers.start_server(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """A connection of the test's own."""
    with connect(server.host) as opened:
        yield opened


@contextmanager
def small_disk(path: Path, size_mb: int) -> Iterator[Path]:
    """Mount a real file system of that size; needs root, as in a container or CI."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root; the tests without a mount still ran")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(root: Path, sizes: dict[str, int], letter: bytes = b"x") -> Path:
    """Write files of these sizes."""
    root.mkdir(exist_ok=True)
    for name, size in sizes.items():
        (root / name).write_bytes(letter * size)
    return root


def test_push_to_a_full_disk(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Nothing travels, both numbers are told, the old files are intact, no partial file stays."""
    tree = fill(tmp_path / "tree", {"big": 5 * MB, "small": 100})
    with small_disk(server.home / tmp_path.name, 8) as disk:
        push(connection, tree, tmp_path.name, options=OPTIONS)
        before = read_tree(disk)
        fill(tree, {"big": 5 * MB, "small": 100, "more": 3 * MB}, b"y")
        with pytest.raises(NoSpace, match=r"no space left on .*are intact") as caught:
            push(connection, tree, tmp_path.name, options=OPTIONS)

        assert 8 * MB <= caught.value.needed_bytes < 9 * MB
        assert 2 * MB < caught.value.free_bytes < 4 * MB
        assert read_tree(disk) == before
        assert sorted(path.name for path in disk.iterdir()) == ["big", "small"]


def test_disk_that_fills_up_during_a_push(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Room for big files is reserved, so that somebody else's data cannot fail them half-way."""
    tree = fill(tmp_path / "tree", {"big": 5 * MB})
    with small_disk(server.home / tmp_path.name, 8) as disk:

        def hog(_: Progress) -> None:
            if not (disk / "hog").exists():
                fill_up(disk / "hog")

        push(connection, tree, tmp_path.name, on_progress=hog, options=OPTIONS)

        assert (disk / "hog").stat().st_size >= 2 * MB
        assert (disk / "big").read_bytes() == (tree / "big").read_bytes()


def test_small_files_to_a_disk_that_fills_up(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """A disk that is full when bundles are unpacked is `NoSpace`; old files are intact."""
    old = {f"f{number}": 50_000 for number in range(40)}
    tree = fill(tmp_path / "tree", old)
    with small_disk(server.home / tmp_path.name, 8) as disk:
        push(connection, tree, tmp_path.name, options=OPTIONS)
        before = read_tree(disk)
        fill(tree, old, b"y")

        def hog(_: Progress) -> None:
            if not (disk / "hog").exists():
                fill_up(disk / "hog")

        with pytest.raises(NoSpace):
            push(connection, tree, tmp_path.name, on_progress=hog, options=OPTIONS)
        (disk / "hog").unlink()
        whole = {name: data for name, data in read_tree(disk).items() if "/" not in name}
        assert {
            name for name, data in whole.items() if data not in (before[name], b"y" * 50_000)
        } == set()

        push(connection, tree, tmp_path.name, options=OPTIONS)
        assert read_tree(disk) == read_tree(tree)


def test_interrupted_push_counts_what_is_there(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """What an interrupted push has brought counts as room: the rest still fits."""
    tree = fill(tmp_path / "tree", {"big": 6 * MB})

    class InterruptionError(Exception):
        """Stands for Ctrl-C."""

    def interrupt(progress: Progress) -> None:
        if progress.bytes_done > 3 * MB:
            raise InterruptionError

    with small_disk(server.home / tmp_path.name, 8) as disk:
        with pytest.raises(InterruptionError):
            push(connection, tree, tmp_path.name, on_progress=interrupt, options=OPTIONS)
        report = push(connection, tree, tmp_path.name, options=OPTIONS)

        assert report.bytes_resumed > 2 * MB
        assert read_tree(disk) == read_tree(tree)


def test_pull_to_a_full_disk(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """A pull that does not fit here says so before anything travels."""
    fill(server.home / tmp_path.name, {"big": 5 * MB, "small": 100})
    with small_disk(tmp_path / "home", 4) as disk:
        (disk / "big").write_bytes(b"old")
        with pytest.raises(NoSpace) as caught:
            pull(connection, tmp_path.name, disk, options=OPTIONS)

        assert caught.value.needed_bytes >= 5 * MB
        assert read_tree(disk) == {"big": b"old"}


def test_more_than_any_disk_has(tmp_path: Path) -> None:
    """A reservation that exceeds the disk is refused with both numbers and gives all back."""
    request = {"root": str(tmp_path), "chunk": 1, "blobs": [["a", 10], ["b", 1 << 60]]}
    answer = tree_ops.reserve_space(request)

    assert answer["error"] == "no-space"
    assert answer["needed"] == (1 << 60) + 10
    assert 0 < answer["free"] < answer["needed"]
    assert list(tmp_path.iterdir()) == []


def fill_up(path: Path) -> None:
    """Take all room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 << 10))
        except OSError:
            return
