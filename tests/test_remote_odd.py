"""Machines and keys as people have them: noisy shells, old key formats, odd things in the way."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import sshd
from support.trees import make_tree, read_tree

from remote.errors import CommandFailed, RemoteError, Unreachable
from remote.job import Job, JobState
from remote.ssh import connect
from remote.sync.api import pull, push
from remote.sync.plan import SyncOptions


def test_shell_that_greets(tmp_path: Path) -> None:
    """A login shell whose start-up file prints something spoils neither sync nor job."""
    tree = make_tree(tmp_path / "tree")
    (tree / "big").unlink()
    with sshd.serve(tmp_path / "server") as server:
        wrapper = tmp_path / "server" / "enter"
        lines = wrapper.read_text().splitlines()
        lines.insert(1, 'case "$SSH_ORIGINAL_COMMAND" in *sftp*) ;; *) echo "Welcome, {}!" ;; esac')
        wrapper.write_text("\n".join(lines) + "\n")
        with connect(server.host()) as connection:
            assert connection.run("echo x").stdout == "x\n"
            push_without_sftp = SyncOptions(python=sys.executable)
            push(connection, tree, "qft/noisy", options=push_without_sftp)
            pull(connection, "qft/noisy", tmp_path / "back")
            job = Job(connection=connection, directory="qft/job")

            assert job.start(["sleep", "60"], env={}, cwd=".").state is JobState.RUNNING
            assert job.stop(grace_s=60).exit_code == 143
    assert read_tree(tmp_path / "back") == read_tree(tree)


def test_a_server_that_opens_one_session_only_is_reported_with_what_to_raise(
    tmp_path: Path,
) -> None:
    """It answers and the line is up, so nobody is sent to look at the firewall."""
    with (
        sshd.serve(tmp_path / "server", config="MaxSessions 1") as server,
        connect(server.host()) as connection,
        connection.transport.open_session(),
        pytest.raises(Unreachable, match="opens no further session") as caught,
    ):
        connection.run("true")

    assert "raise `MaxSessions`" in caught.value.hint


@pytest.mark.parametrize("options", [["-t", "rsa", "-b", "2048", "-m", "PEM"], ["-t", "ecdsa"]])
def test_keys_of_other_types(tmp_path: Path, options: list[str]) -> None:
    """The user's own key may be of another type, also in the old format."""
    command = ["ssh-keygen", "-q", *options, "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    with sshd.serve(tmp_path / "server") as server:
        authorized = tmp_path / "server" / "authorized_keys"
        authorized.write_text((tmp_path / "key.pub").read_text())
        with connect(server.host(key_path=tmp_path / "key")) as connection:
            assert connection.run("echo in").stdout == "in\n"


def test_host_key_of_another_type(tmp_path: Path) -> None:
    """A host that has only an RSA key can be pinned too."""
    with sshd.serve(tmp_path / "server", config=f"HostKey {rsa(tmp_path)}") as server:
        settings = tmp_path / "server" / "sshd_config"
        assert "HostKey" in settings.read_text()
        line = (tmp_path / "rsa.pub").read_text()
        with connect(server.host(host_key=line)) as connection:
            assert connection.run("echo in").stdout == "in\n"


def rsa(folder: Path) -> Path:
    """Make an RSA host key."""
    path = folder / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_unusable_key_file(tmp_path: Path, content: bytes | None) -> None:
    """A key file that is absent or no key is refused before anything is dialled."""
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with sshd.serve(tmp_path / "server") as server:
        host = server.host(key_path=tmp_path / "key", port=1)
        with pytest.raises(RemoteError, match="private key"):
            connect(host)


def test_no_python_there(tmp_path: Path) -> None:
    """A machine without the interpreter is told apart from a failing script."""
    tree = make_tree(tmp_path / "tree")
    with (
        sshd.serve(tmp_path / "server") as server,
        connect(server.host()) as connection,
        pytest.raises(CommandFailed) as caught,
    ):
        push(connection, tree, "qft/x", options=SyncOptions(python="python9"))

    assert "is there a Python >= 3.8 named `python9`" in caught.value.hint


def test_directory_at_a_files_place(tmp_path: Path) -> None:
    """A directory where a file should go is an error that names it, here and there."""
    tree = make_tree(tmp_path / "tree")
    with sshd.serve(tmp_path / "server") as server, connect(server.host()) as connection:
        (server.home / "qft/x/one/inside").mkdir(parents=True)
        with pytest.raises(RemoteError, match="qft/x/one"):
            push(connection, tree, "qft/x")
        push(connection, tree, "qft/y")
        (tmp_path / "back/one/inside").mkdir(parents=True)
        with pytest.raises(RemoteError, match="back/one"):
            pull(connection, "qft/y", tmp_path / "back")


def test_file_at_a_directorys_place(tmp_path: Path) -> None:
    """A file where a directory should be is an error that names it, here and there."""
    tree = make_tree(tmp_path / "tree")
    with sshd.serve(tmp_path / "server") as server, connect(server.host()) as connection:
        (server.home / "qft/x").mkdir(parents=True)
        (server.home / "qft/x/a").write_text("in the way")
        with pytest.raises(RemoteError, match="qft/x/a"):
            push(connection, tree, "qft/x")
        push(connection, tree, "qft/y")
        (tmp_path / "back").mkdir()
        (tmp_path / "back/a").write_text("in the way")
        with pytest.raises(RemoteError, match="back/a"):
            pull(connection, "qft/y", tmp_path / "back")

        assert (server.home / "qft/x/a").read_text() == "in the way"
        assert (tmp_path / "back/a").read_text() == "in the way"


def test_clients_that_sync_the_same_tree_at_once(tmp_path: Path) -> None:
    """Four pushes of one tree, and four pulls into one directory, all end well at the same time."""
    tree = make_tree(tmp_path / "tree")
    options = SyncOptions(chunk_bytes=64 << 10, attempts=10)
    with sshd.serve(tmp_path / "server") as server:

        def send(_: int) -> None:
            with connect(server.host()) as connection:
                push(connection, tree, "qft/x", options=options)

        def pull_once(_: int) -> None:
            with connect(server.host()) as connection:
                pull(connection, "qft/x", tmp_path / "back", options=options)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(4)))
            assert read_tree(server.home / "qft/x") == read_tree(tree)
            list(pool.map(pull_once, range(4)))
            assert read_tree(tmp_path / "back") == read_tree(tree)
