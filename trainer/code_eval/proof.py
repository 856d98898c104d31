"""Proves a sandbox before the first answer: attacks on decoys of ours must all fail in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.code_eval.client import NotEntered, ParentEnded, ParentOfAnswers
from trainer.code_eval.limits import OUTPUT, PASSED, TIMEOUT, Limits, Outcome
from trainer.code_eval.sandbox import LANDLOCK, NAMESPACES
from trainer.errors import NoSandbox

MECHANISMS = (NAMESPACES, LANDLOCK)
"""The ways to hold an answer, the stronger one first."""
SMALL = Limits(
    wall_s=5.0,
    memory_bytes=256 << 20,
    folder_bytes=16 << 20,
    folder_files=512,
    file_bytes=8 << 20,
    output_bytes=64 << 10,
)
"""Limits under which an attack that gets through does no harm."""
FORKS, MEMORY_CHILDREN, MEMORY_CHILD_BYTES = 200, 4, 128 << 20


@dataclass(kw_only=True)
class Decoys:
    """What the attacks are after: none of it is worth anything to anybody."""

    folder: Path
    secret: str
    listeners: Sequence[socket.socket]
    abstract: str
    sleeper: subprocess.Popen[bytes]
    ours: Sequence[Path] = ()
    """Real files of this run; of these only whether they can be read is tried."""

    @property
    def canary(self) -> Path:
        """The file that an attack tries to make."""
        return self.folder / "canary"

    @property
    def precious(self) -> Path:
        """The file that an attack tries to change; its owner is who trains."""
        return self.folder / "precious"

    def is_unchanged(self) -> bool:
        """Tell whether that file is as it was made."""
        try:
            found = self.precious.stat()
        except FileNotFoundError:
            return False
        return (found.st_mode & 0o777, found.st_size) == (0o600, 1) and found.st_mtime > 0

    @property
    def port(self) -> int:
        """The port on loopback that somebody listens on."""
        return int(self.listeners[0].getsockname()[1])

    def was_reached(self) -> bool:
        """Tell whether anybody connected to a listener."""
        reached = False
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):  # nobody did
                listener.accept()[0].close()
                reached = True
        return reached

    def has_read(self, output: str) -> bool:
        """Tell whether an attack printed the secret, the key's name, or anything of ours."""
        parts = [self.secret, "key.pem"]
        for path in self.ours:
            with contextlib.suppress(OSError):  # it is not there yet
                parts.append(repr(path.read_bytes()[:40])[2:-1])
        return any(part and part in output for part in parts)


@contextlib.contextmanager
def decoys(ours: Sequence[Path] = ()) -> Iterator[Decoys]:
    """Put up decoys that everybody may reach who is not held by a sandbox, and remove them."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qft-decoy-")))
        folder.chmod(0o777)
        key = folder / "key.pem"
        key.write_text(secret)
        key.chmod(0o600)
        (folder / "precious").write_text("x")
        (folder / "precious").chmod(0o600)
        abstract = f"qft-decoy-{secret[:12]}"
        listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        addresses: list[Any] = [("127.0.0.1", 0), str(folder / "socket"), f"\0{abstract}"]
        for listener, address in zip(listeners, addresses, strict=True):
            stack.enter_context(listener)
            listener.bind(address)
            listener.listen(8)
            listener.setblocking(False)
        (folder / "socket").chmod(0o777)
        sleeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"],
            env={"SECRET": secret},
            stdin=subprocess.DEVNULL,
        )
        stack.callback(_end, sleeper)
        yield Decoys(
            folder=folder,
            secret=secret,
            listeners=listeners,
            abstract=abstract,
            sleeper=sleeper,
            ours=ours,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack: what it is called where it got through, and how that is seen."""

    what: str
    name: str
    arguments: Callable[[Decoys], Mapping[str, Any]] = lambda _decoys: {}
    limits: Limits = SMALL
    got_through: Callable[[Outcome, Decoys], bool]


def _number_after(word: str, output: str) -> int:
    digits = output.rpartition(word)[2].split()
    return int(digits[0]) if digits and digits[0].isdecimal() else 0


def _filled(outcome: Outcome, _decoys: Decoys) -> bool:
    if outcome.verdict != PASSED:
        return False
    written, files = _number_after("wrote", outcome.output), _number_after("and", outcome.output)
    return written > SMALL.folder_bytes or files > SMALL.folder_files


def _took(outcome: Outcome, _decoys: Decoys) -> bool:
    held = _number_after("held", outcome.output)
    return outcome.verdict == PASSED and held * MEMORY_CHILD_BYTES > SMALL.memory_bytes


ATTACKS = (
    Attack(
        what="reading files of others",
        name="read_files",
        arguments=lambda one: {
            "paths": [str(one.folder / "key.pem"), str(one.folder), *map(str, one.ours)]
        },
        got_through=lambda outcome, one: one.has_read(outcome.output),
    ),
    Attack(
        what="reading the memory or the environment of other processes",
        name="read_processes",
        arguments=lambda one: {"processes": [one.sleeper.pid, os.getpid()]},
        got_through=lambda outcome, one: one.secret in outcome.output
        or "memory of process" in outcome.output,
    ),
    Attack(
        what="connecting to a port or a socket",
        name="connect",
        arguments=lambda one: {
            "port": one.port, "path": str(one.folder / "socket"), "abstract": one.abstract
        },
        got_through=lambda outcome, one: one.was_reached() or "sent" in outcome.output,
    ),
    Attack(
        what="ending other processes",
        name="send_signals",
        arguments=lambda one: {"processes": [one.sleeper.pid]},
        got_through=lambda _outcome, one: one.sleeper.poll() is not None,
    ),
    Attack(
        what="writing outside its folder",
        name="write_outside",
        arguments=lambda one: {"paths": [str(one.canary), *map(str, _places(one))]},
        got_through=lambda _outcome, one: any(
            path.exists() for path in (one.canary, *_places(one))
        ),
    ),
    Attack(
        what="changing files of others",
        name="change_files",
        arguments=lambda one: {"paths": [str(one.precious)]},
        got_through=lambda _outcome, one: not one.is_unchanged(),
    ),
    Attack(
        what="forking without end",
        name="fork_many",
        arguments=lambda _one: {"count": FORKS},
        got_through=lambda outcome, _one: _number_after("forked", outcome.output)
        > SMALL.processes,
    ),
    Attack(
        what="taking memory in several processes",
        name="take_memory",
        arguments=lambda _one: {"children": MEMORY_CHILDREN, "size_bytes": MEMORY_CHILD_BYTES},
        got_through=_took,
    ),
    Attack(
        what="filling the disk",
        name="fill_folder",
        arguments=lambda _one: {
            "size_bytes": 2 * SMALL.folder_bytes, "files": 2 * SMALL.folder_files
        },
        got_through=_filled,
    ),
    Attack(
        what="gaining privileges",
        name="gain_privileges",
        got_through=lambda outcome, _one: bool(outcome.output.strip()),
    ),
    Attack(
        what="leaving a process behind",
        name="leave_daemon",
        got_through=lambda _outcome, _one: False,  # what is left is counted after each attack
    ),
    Attack(
        what="writing without end",
        name="print_endlessly",
        limits=replace(SMALL, wall_s=60.0),  # a busy machine takes a while to write as much
        got_through=lambda outcome, _one: outcome.verdict != OUTPUT,
    ),
    Attack(
        what="computing without end",
        name="never_end",
        limits=replace(SMALL, wall_s=0.3),
        got_through=lambda outcome, _one: outcome.verdict != TIMEOUT,
    ),
    Attack(
        what="forging a verdict",
        name="forge",
        got_through=lambda outcome, _one: outcome.verdict == PASSED,
    ),
)  # fmt: skip
"""Every attack that a sandbox must hold against."""


def _places(one: Decoys) -> list[Path]:
    """Return files that an attack tries to make among programs and libraries."""
    folders = (sysconfig.get_path("purelib"), "/usr", "/var/tmp")  # noqa: S108 - it must fail
    return [Path(folder) / f"{one.abstract}-canary" for folder in folders]


def breaches(parent: ParentOfAnswers, mechanism: str, ours: Sequence[Path] = ()) -> list[str]:
    """Return what gets through a sandbox; empty if it holds.

    Raises:
        NotEntered: it cannot be entered at all.
        ParentEnded: the parent of answers ended under an attack.
    """
    found = []
    with decoys(ours) as one:
        for attack in ATTACKS:
            outcome = parent.attack(
                attack.name, attack.arguments(one), mechanism=mechanism, limits=attack.limits
            )
            if attack.got_through(outcome, one):
                found.append(attack.what)
            if outcome.left:
                found.append(f"leaving {outcome.left} processes behind by {attack.what}")
        for path in _places(one):
            path.unlink(missing_ok=True)
    return found


def proven_mechanism(
    parent: ParentOfAnswers,
    ours: Sequence[Path] = (),
    *,
    mechanisms: Sequence[str] = MECHANISMS,
) -> str:
    """Return the first mechanism that holds against every attack.

    Raises:
        NoSandbox: none does; the text names what gets through, for each of them.
    """
    reasons = []
    for mechanism in mechanisms:
        try:
            found = breaches(parent, mechanism, ours)
        except NotEntered as error:
            reasons.append(f"{mechanism}: cannot be made here ({error})")
        except ParentEnded:
            reasons.append(f"{mechanism}: the parent of the answers was ended")
            break
        else:
            if not found:
                return mechanism
            reasons.append(f"{mechanism}: does not hold against {', '.join(found)}")
    raise NoSandbox(
        [
            "eval.kind: no sandbox on this machine holds, so no answer is run",
            *reasons,
            "score on a machine where this user is root, or may use `sudo` without a password",
        ]
    )
