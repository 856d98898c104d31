"""Commands reach a machine behind any login shell; one that ends before them is named."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.sshd import Sshd, serve

from remote.errors import CommandFailed, LoginShellEnded, RemoteError, TimedOut
from remote.job import Job, JobState
from remote.login_shell import wrap_for_any_shell
from remote.on_machine import tree_ops
from remote.remote_script import RemoteScript
from remote.ssh import connect
from remote.sync.api import push

PLAYED = r"""
import os, re, sys

words, rest = [], sys.argv[2]
while rest:
    found = re.match(r" *(?:'((?:[^'!\\\n]|\\0[0-7]{3})*)'|([A-Za-z0-9/_.%-]+))(?= |$)", rest)
    if found is None:
        sys.exit("this shell takes plain words and plain quotes only: " + rest)
    words.append(found[2] if found[1] is None else found[1])
    rest = rest[found.end():]
os.execvp(words[0], words)
"""
"""A shell that knows nothing of POSIX: whatever shells differ in is an error to it, as `!`, line
ends and backslashes between quotes (but before a digit, which nobody minds), and variables, `;` and
`&&` outside of them."""

TEXTS = [
    "plain",
    'it\'s "quoted" `and` $HOME ${HOME} $(id)',
    "back\\slash \\\\ \\n \\0101 %s %b",
    "!! !history ^a^b *? [a-z] {a,b} ~ ~root #no",
    "two\nlines\n\n",
    "tab\tand\x01control",
    "ünïcödé 漢字 \udcff",
    "; exit 3 # && || & | > /dev/null",
    "-n -e --",
]


def shells() -> list[str]:
    """The shells that are installed here; `sh` always is."""
    names = ("sh", "bash", "dash", "zsh", "ksh", "mksh", "fish", "tcsh", "csh", "yash", "busybox")
    return [name for name in names if shutil.which(name)]


def in_shell(name: str, line: str) -> subprocess.CompletedProcess[bytes]:
    """Let a shell run a line as a server does."""
    argv = ["busybox", "sh"] if name == "busybox" else [name]
    return subprocess.run([*argv, "-c", line], capture_output=True, check=False)


def encoded(text: str) -> bytes:
    """The text as bytes, also those that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("text", TEXTS)
def test_every_shell_hands_on_the_same_command(text: str) -> None:
    """Whatever shells are here, the command and its words arrive byte for byte."""
    line = wrap_for_any_shell(f"printf '%s|' {shlex.join([text, 'end'])}; exit 5")

    found = {name: in_shell(name, line) for name in shells()}

    wanted = (5, b"qft-begun\n" + encoded(text) + b"|end|")
    assert {(done.returncode, done.stdout) for done in found.values()} == {wanted}, found


@pytest.mark.parametrize("text", TEXTS)
def test_a_line_holds_only_what_all_shells_read_alike(text: str, tmp_path: Path) -> None:
    """Between single quotes stands nothing that a csh, a fish or anything else would change."""
    script = tmp_path / "shell.py"
    script.write_text(PLAYED.replace("[^'\\\\\\\\!", "[^'!"))
    line = wrap_for_any_shell(f"printf %s '{text}'" if "'" not in text else "true")

    done = subprocess.run(
        [sys.executable, str(script), "-c", line], capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert line.isascii()
    assert "\\'" not in line
    assert all(part[:1] == "0" for part in line.split("\\")[1:])


def login_of(shell: str, folder: Path) -> str:
    """The words that start a login shell; the played one where it is asked for."""
    if shell != "played":
        return f"{shell} -c"
    script = folder / "played.py"
    script.write_text(PLAYED)
    return f"{sys.executable} {script} -c"


@pytest.mark.parametrize("shell", [*shells(), "played"])
def test_the_helpers_work_behind_every_login_shell(shell: str, tmp_path: Path) -> None:
    """Scripts are shipped, files sent and compared, and jobs started, whatever reads the line."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a file").write_text("one\n")
    login = "busybox sh -c" if shell == "busybox" else login_of(shell, tmp_path)

    with serve(tmp_path / "server", login=login) as server, connect(server.host()) as connection:
        push(connection, tmp_path / "rows", "qft/rows")
        answer = RemoteScript(connection=connection, path=Path(tree_ops.__file__)).call(
            "list", {"root": "qft/rows"}, timeout_s=120
        )
        job = Job(connection=connection, directory="qft/job")
        job.start(["sh", "-c", "echo it\\'s done"], env={}, cwd=".")
        while job.status().state is JobState.RUNNING:
            time.sleep(0.05)
        output = job.tail().data
        modes = {path.name: path.stat().st_mode & 0o077 for path in server.home.rglob("*")}

    assert list(answer["files"]) == ["a file"]
    assert output == b"it's done\n"
    assert set(modes.values()) == {0}, modes


STARTS = [
    ("exit 0", "ended with exit code 0 before our command"),
    ("exit 3", "ended with exit code 3 before our command"),
    ("exec sh -c 'echo hello from another shell; exit 9'", "hello from another shell"),
    ("exec cat", "ended with exit code 0 before our command"),
    ("exec sh", "before our command"),
    ("set -e; false", "ended with exit code 1 before our command"),
    ("echo 'This account is currently not available.'; exit 1", "may not log in"),
    ("echo 'Password change required but no TTY available.' >&2; exit 1", "has to be changed"),
    ("echo 'Your account has expired; please contact us' >&2; exit 1", "has expired"),
    ("exec /nowhere/fish", "code 127 before our command"),
]


@pytest.mark.parametrize(("start", "expected"), STARTS)
def test_a_start_up_file_that_ends_the_shell_is_named(
    start: str, expected: str, tmp_path: Path
) -> None:
    """No command is taken for done that never ran; the message says what did, and where to look."""
    with starting(tmp_path, start) as server, connect(server.host()) as connection:
        for work in (
            lambda: connection.run("true", input="echo swallowed\n"),
            lambda: RemoteScript(connection=connection, path=Path(tree_ops.__file__)).call(
                "list", {"root": "x"}, timeout_s=60
            ),
        ):
            with pytest.raises(LoginShellEnded) as caught:
                work()
            assert expected in str(caught.value)
            assert caught.value.hint


@contextmanager
def starting(folder: Path, start: str) -> Iterator[Sshd]:
    """A server whose accounts read a start-up file of these lines before anything else."""
    folder.joinpath("start").write_text(f"{start}\n")
    login = folder / "shell"
    login.write_text(f'#!/bin/sh\n. {folder}/start\neval "$2"\n')
    login.chmod(0o755)
    with serve(folder / "server", login=f"{login} -c") as server:
        yield server


NOISE = [
    "echo Welcome to gpu-7; echo; echo '{}'",
    "printf 'no line end'",
    "stty -ixon; stty erase ^H",
    "set -v; set -x",
    "head -c 300000 /dev/zero",
    "printf 'qft-begu'",
    "cd /; cd - > /dev/null; umask 000",
]


@pytest.mark.parametrize("start", NOISE)
def test_what_a_start_up_file_prints_is_no_answer(start: str, tmp_path: Path) -> None:
    """Banners, errors of stty, traces and bytes before the command are left out of what it says."""
    with starting(tmp_path, start) as server, connect(server.host()) as connection:
        output = connection.run("cat; exit 0", input=b"mine").stdout
        RemoteScript(connection=connection, path=Path(tree_ops.__file__)).call(
            "list", {"root": "x"}, timeout_s=60
        )

    assert output == "mine"
    assert server.home.joinpath("qft").stat().st_mode & 0o077 == 0


def test_a_start_up_file_that_waits_is_named(tmp_path: Path) -> None:
    """A shell that never gets to the command says so when time is over."""
    with starting(tmp_path, "sleep 60") as server, connect(server.host()) as connection:
        sshd_timeout = 3.0
        with pytest.raises(TimedOut, match="did not get to it") as caught:
            connection.run("true", timeout_s=sshd_timeout)

    assert "start-up file" in caught.value.hint


def test_a_home_that_takes_no_files_is_named(tmp_path: Path) -> None:
    """Where our folder cannot be made, one sentence says so, and nothing is tried again."""
    with serve(tmp_path / "server") as server, connect(server.host()) as connection:
        (server.home / "qft").write_text("in the way")
        with pytest.raises(RemoteError, match="nothing can be written") as caught:
            RemoteScript(connection=connection, path=Path(tree_ops.__file__)).call(
                "list", {"root": "x"}, timeout_s=60
            )

    assert not isinstance(caught.value, CommandFailed)
    assert "mkdir" in str(caught.value)
