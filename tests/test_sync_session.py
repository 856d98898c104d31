"""One process on the machine serves a whole push, and hashes files while they still arrive."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import ssh_servers
from support.trees import make_tree, read_tree

from remote.errors import CommandFailed, RemoteError
from remote.on_machine import tree_ops
from remote.on_machine.tree_ops import PrefixHashes
from remote.remote_script import RemoteScript
from remote.ssh import SshConnection, connect
from remote.sync.api import pull, push
from remote.sync.plan import Blob, SyncOptions, chunks_of
from remote.sync.session import ScriptSession
from remote.sync.transfer import REPORTED_BYTES, ReceivedPrefix

MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh_servers.RunningServer]:
    """A server for the file."""
    kind = ssh_servers.KINDS[0]
    with ssh_servers.start_server(kind, tmp_path_factory.mktemp("server")) as opened:
        yield opened


@pytest.fixture
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """A connection to it."""
    with connect(server.host) as opened:
        yield opened


def open_session(connection: SshConnection, python: str = sys.executable) -> ScriptSession:
    """Open a session of the script that syncs."""
    path = Path(tree_ops.__file__)
    return ScriptSession(RemoteScript(connection=connection, path=path, python=python))


def test_a_session_answers_many_requests(
    connection: SshConnection, server: ssh_servers.RunningServer
) -> None:
    """Each request is answered in turn, also after one that failed, and on the first upload."""
    make_tree(server.home / "tree")
    with closing(open_session(connection)) as session:
        for _ in range(2):
            answer = session.call("list", {"root": "tree"}, timeout_s=60)
            assert len(answer["files"]) == len(read_tree(server.home / "tree"))
            with pytest.raises(RemoteError, match="could not do `hash`: illegal path"):
                session.call("hash", {"root": "tree", "chunk": 1, "paths": ["../x"]}, timeout_s=60)


def test_a_session_without_python_is_explained(connection: SshConnection) -> None:
    """An interpreter that is not there is named, as for a single request."""
    with (
        closing(open_session(connection, "no-such-python")) as session,
        pytest.raises(CommandFailed) as caught,
    ):
        session.call("list", {"root": "tree"}, timeout_s=60)
    assert "no-such-python" in str(caught.value)
    assert "Python >= 3.8" in caught.value.hint


def test_a_push_starts_one_process_there(
    connection: SshConnection,
    server: ssh_servers.RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """List, reservation and commit of a push are served by one process."""
    starts: list[str] = []
    stream = SshConnection.stream

    def count(self: SshConnection, command: str, *rest: Any, **options: Any) -> tuple[int, bytes]:
        starts.append(command)
        return stream(self, command, *rest, **options)

    push(connection, make_tree(tmp_path / "first"), "first")
    monkeypatch.setattr(SshConnection, "stream", count)
    push(connection, make_tree(tmp_path / "tree"), "pushed")

    assert [command.rsplit(" ", 1)[1] for command in starts] == ["serve"]
    assert read_tree(server.home / "pushed") == read_tree(tmp_path / "tree")


def serve(root: Path, *lines: list[Any]) -> list[Any]:
    """Run the process of a session here."""
    requests = [json.dumps([verb, {"root": str(root), **request}]) for verb, request in lines]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tree_ops.__file__), "serve"],
        input="\n".join(requests) + "\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    answers = done.stdout.partition(tree_ops.ANSWER_MARK)[2]
    return [json.loads(line) for line in answers.splitlines()]


@pytest.mark.parametrize("last", ["", "!"])
def test_what_was_hashed_on_the_way_is_judged_with_the_rest(tmp_path: Path, last: str) -> None:
    """A blob hashed while it arrived is put into place if all of it is right, and only then."""
    data = random.Random(3).randbytes(3 * MB)  # noqa: S311  (test data)
    (tmp_path / tree_ops.PARTIAL_DIR).mkdir()
    (tmp_path / tree_ops.PARTIAL_DIR / "blob").write_bytes(data)
    announced = hashlib.sha256(data + last.encode()).hexdigest()

    [answer] = serve(
        tmp_path,
        ["received", {"blob": "gone", "bytes": 1}],
        ["received", {"blob": "blob", "bytes": MB}],
        ["received", {"blob": "blob", "bytes": 2 * MB}],
        ["commit", {"files": [["blob", "file", len(data), announced]], "bundles": []}],
    )

    assert answer["damaged"] == (["file"] if last else [])
    assert read_tree(tmp_path) == ({} if last else {"file": data})


def test_a_prefix_is_never_read_beyond_its_end(tmp_path: Path) -> None:
    """Bytes that change after a prefix of the file was hashed are hashed as they are at the end."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * 5000 + bytes(5000))
    hashes = PrefixHashes()
    hashes.extend(str(file), 5000)
    with file.open("r+b") as opened:
        opened.seek(5000)
        opened.write(b"b" * 5000)

    assert hashes.finish(str(file)) == hashlib.sha256(b"a" * 5000 + b"b" * 5000).hexdigest()


def test_a_replaced_file_is_hashed_from_its_beginning(tmp_path: Path) -> None:
    """A file put into the place of one that was begun is judged by its own bytes."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * 10)
    hashes = PrefixHashes()
    hashes.extend(str(file), 5)
    file.unlink()
    file.write_bytes(b"b" * 10)

    assert hashes.finish(str(file)) == hashlib.sha256(b"b" * 10).hexdigest()


def test_more_files_than_are_kept_open_are_hashed_all_the_same(tmp_path: Path) -> None:
    """However many files are begun, few are open, and each hash is right."""
    hashes = PrefixHashes()
    files = [tmp_path / str(number) for number in range(tree_ops.PREFIXES_MAX + 3)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for file in files:
        file.write_text(file.name * 9)
        hashes.extend(str(file), 4)
    opened = len(os.listdir("/proc/self/fd")) - before  # noqa: PTH208

    assert opened == tree_ops.PREFIXES_MAX
    for file in files:
        assert hashes.finish(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_error_of_the_disk_is_kept_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync that failed on the way, which the system reports once, fails the commit as well."""

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    file = tmp_path / "file"
    file.write_bytes(bytes(3 * MB))
    monkeypatch.setattr(tree_ops, "FSYNC_BYTES", MB)
    hashes = PrefixHashes()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            hashes.extend(str(file), 2 * MB)
    with pytest.raises(OSError, match="Input/output error"):
        hashes.finish(str(file))


def test_a_prefix_grows_without_gaps() -> None:
    """Chunks that arrive in any order are reported as one prefix, in steps and at the end."""
    blob = Blob(name="x", size=3 * REPORTED_BYTES + 5, files=(("x", 0),), bundled=False)
    reported: list[int] = []
    prefix = ReceivedPrefix(blob=blob, on_more=lambda _blob, size: reported.append(size))
    chunks = chunks_of(blob, REPORTED_BYTES)
    for number in (1, 3, 0):
        prefix.add(chunks[number])
    assert reported == [2 * REPORTED_BYTES]
    prefix.add(chunks[2])
    assert reported == [2 * REPORTED_BYTES, blob.size]


def test_a_pull_of_what_is_here_brings_no_list(
    connection: SshConnection,
    server: ssh_servers.RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the last pull brought is recognised by a digest; any change here or there counts."""
    there, home = make_tree(server.home / "there"), tmp_path / "home"
    for file in there.rglob("*"):
        os.utime(file, (1e9, 1e9))
    options = SyncOptions(cache_dir=tmp_path / "cache", python=sys.executable)
    lists: list[bool] = []
    read = RemoteScript.read

    def note(self: RemoteScript, verb: str, data: bytes) -> dict[str, Any]:
        answer = read(self, verb, data)
        lists.append(bool(answer["files"]))
        return answer

    def pull_again() -> int:
        return pull(connection, "there", home, options=options).files_sent

    monkeypatch.setattr(RemoteScript, "read", note)
    assert pull_again() == len(read_tree(there))
    for file in home.rglob("*"):
        os.utime(file, (1e9, 1e9))
    assert pull_again() == 0
    assert pull_again() == 0
    assert lists == [True, True, False]

    (home / "one").write_bytes(b"!")
    assert pull_again() == 1
    (there / "one").write_bytes(b"?")
    assert pull_again() == 1
    (home / "one").unlink()
    assert pull_again() == 1
    (there / "one").unlink()
    assert pull_again() == 0
    assert (home / "one").read_bytes() == b"?"
    assert lists[3:6] == [True] * 3
