"""A push makes a tree there equal to a tree here, whole file by whole file, and sends no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ssh_servers
from support.trees import make_tree, read_tree

from remote.errors import RemoteError
from remote.ssh import SshConnection, connect
from remote.sync.api import push
from remote.sync.plan import Progress, SyncOptions


@pytest.fixture(scope="module", params=ssh_servers.KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssh_servers.RunningServer]:
    """A server of each kind for the file."""
    with ssh_servers.start_server(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """One connection for the file."""
    with connect(server.host) as opened:
        yield opened


SMALL_CHUNKS = SyncOptions(chunk_bytes=1 << 20)


def test_push_into_nothing(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Everything arrives, bit for bit, and no partial file stays behind."""
    tree = make_tree(tmp_path / "tree")
    report = push(connection, tree, f"qft/{tmp_path.name}", options=SMALL_CHUNKS)

    assert read_tree(server.home / "qft" / tmp_path.name) == read_tree(tree)
    assert (report.files, report.files_sent, report.bytes_resumed) == (5, 5, 0)
    assert report.bytes == report.bytes_sent == 3_004_115


def test_second_push_sends_nothing(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """An unchanged tree transfers nothing and rewrites nothing."""
    tree = make_tree(tmp_path / "tree")
    push(connection, tree, f"qft/{tmp_path.name}")
    there = server.home / "qft" / tmp_path.name
    before = {path: path.stat().st_ino for path in there.rglob("*")}
    report = push(connection, tree, f"qft/{tmp_path.name}")

    assert (report.files, report.files_sent, report.bytes_sent) == (5, 0, 0)
    assert {path: path.stat().st_ino for path in there.rglob("*")} == before


def test_push_sends_what_differs(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Only changed and new files travel, also when size and time are the same."""
    tree = make_tree(tmp_path / "tree")
    push(connection, tree, f"qft/{tmp_path.name}")
    info = (tree / "a/small").stat()
    (tree / "a/small").write_bytes(bytes(4096))
    os.utime(tree / "a/small", ns=(info.st_atime_ns, info.st_mtime_ns))
    (tree / "new").write_bytes(b"12")
    report = push(connection, tree, f"qft/{tmp_path.name}")

    assert (report.files_sent, report.bytes_sent) == (2, 4098)
    assert read_tree(server.home / "qft" / tmp_path.name) == read_tree(tree)


def test_extraneous_files_are_deleted_only_on_request(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Files that only the machine has stay, unless deletion is asked for; excluded ones stay."""
    tree = make_tree(tmp_path / "tree")
    there = server.home / "qft" / tmp_path.name
    for name in ("old/one", "kept.log"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("x")
    kept = push(connection, tree, f"qft/{tmp_path.name}")
    options = SyncOptions(delete=True, exclude=("*.log",))
    gone = push(connection, tree, f"qft/{tmp_path.name}", options=options)

    assert (kept.removed, gone.removed) == ((), ("old/one",))
    assert not (there / "old").exists()
    assert (there / "kept.log").read_text() == "x"


def test_excluded_files_stay_home(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Names and whole paths can be excluded by patterns."""
    tree = make_tree(tmp_path / "tree")
    for name in (".git/HEAD", "a/__pycache__/x.pyc", "a/keep.py", "out/a/skip"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    options = SyncOptions(exclude=(".git", "__pycache__", "out/a/*", "big"))
    push(connection, tree, f"qft/{tmp_path.name}", options=options)
    there = read_tree(server.home / "qft" / tmp_path.name)

    assert sorted(there) == ["a/b/c/deep", "a/keep.py", "a/small", "empty", "one"]


def test_named_files_from_anywhere(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Files can be named one by one, and get other names over there."""
    (tmp_path / "Mine.JSONL").write_text("{}")
    push(connection, {"train.jsonl": tmp_path / "Mine.JSONL"}, f"qft/{tmp_path.name}/data")

    assert read_tree(server.home / "qft" / tmp_path.name) == {"data/train.jsonl": b"{}"}


def test_links_are_followed(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Links to files and directories travel as what they point to, as a model cache needs."""
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    tree = tmp_path / "snapshot"
    tree.mkdir()
    (tree / "model.safetensors").symlink_to(blob)
    (tree / "more").symlink_to(blob.parent)
    (tree / "loop").symlink_to(tree)
    (tree / "dangling").symlink_to("nowhere")
    report = push(connection, tree, f"qft/{tmp_path.name}")

    assert read_tree(server.home / "qft" / tmp_path.name) == {
        "model.safetensors": b"weights",
        "more/abc": b"weights",
    }
    assert sorted(report.skipped) == ["dangling", "loop"]


def test_unusual_names(
    connection: SshConnection, server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """Names with blanks, quotes and other scripts arrive as they are."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a b", "it's $HOME", "žluťoučký", "数据", "-rf", "*"):
        (tree / name).write_text(name)
    push(connection, tree, f"qft/{tmp_path.name}")

    assert read_tree(server.home / "qft" / tmp_path.name) == read_tree(tree)


def test_progress_reaches_its_total(connection: SshConnection, tmp_path: Path) -> None:
    """Progress only grows, and ends with everything done."""
    seen: list[Progress] = []
    tree = make_tree(tmp_path / "tree")
    push(connection, tree, f"qft/{tmp_path.name}", on_progress=seen.append, options=SMALL_CHUNKS)

    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert seen[0].bytes_done == 0
    assert (seen[-1].bytes_done, seen[-1].files_done) == (3_004_115, 5)
    assert (seen[-1].bytes_total, seen[-1].files_total) == (3_004_115, 5)


def test_nothing_there_to_push(connection: SshConnection, tmp_path: Path) -> None:
    """A source that does not exist is an error with a hint, not an empty push."""
    with pytest.raises(RemoteError, match="is not there"):
        push(connection, tmp_path / "nowhere", "qft/x")
    with pytest.raises(RemoteError, match="not there, or no file"):
        push(connection, {"a": tmp_path / "nowhere"}, "qft/x")
