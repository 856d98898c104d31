"""Runs one of our scripts on the machine, shipped by content hash, so that versions never mix."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote import untrusted
from remote.errors import CommandFailed, CommandResult, Garbled, RemoteError, Untrusted, shorten
from remote.on_machine import tree_ops
from remote.ssh import KILLED, SshConnection

MISSING = 97
HANDLED = 3
HOME = "qft"
MARK = tree_ops.MARK.encode()
ANSWER_BYTES_MAX = 64 << 20
"""A list of 100,000 files has 20 MB."""
CHATTER_BYTES_MAX = 64 << 10
"""How much a login shell may print before our script does."""


@dataclass(frozen=True, kw_only=True)
class RemoteScript:
    """One of our stand-alone scripts over one connection."""

    connection: SshConnection
    path: Path
    """The script here; it needs nothing but Python's standard library."""
    python: str = "python3"
    """The interpreter there."""

    def call(self, verb: str, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Do `verb` there and return its answer: plain values for `script_replies` to check.

        An answer may carry `error` `no-space` for the caller to explain; any other error there is
        raised as `RemoteError`. Raises `CommandFailed` if the script cannot run at all.
        """
        said: list[bytes] = []
        code, stderr = self.stream(verb, request, said.append, timeout_s=timeout_s)
        data = b"".join(said)
        if code not in {0, HANDLED}:
            raise self.failure(verb, code, data, stderr)
        answer = read_answer(data, verb=verb, source=str(self.connection.host))
        if answer.get("error", "no-space") != "no-space":
            told = [untrusted.text(answer.get(key), most=300) or "?" for key in ("said", "path")]
            raise RemoteError(
                f"{self.connection.host} could not do `{verb}`: {told[0]} ({told[1]})"
            )
        return answer

    def stream(
        self,
        verb: str,
        request: Mapping[str, Any],
        take: Callable[[bytes], object],
        *,
        timeout_s: float,
        limit_bytes: int = 64 << 20,
    ) -> tuple[int, bytes]:
        """Do `verb` there, hand its output to `take` as it comes; return exit code and stderr.

        Ships the script when it is not there yet. At most `limit_bytes` are taken.
        """
        source = self.path.read_bytes()
        target = f"{HOME}/{self.path.stem}-{hashlib.sha256(source).hexdigest()[:8]}.py"
        words = [self.python, "-I", "-S", target, verb]  # no site packages: they cost start-up time
        # Not empty: so a power cut soon after the sending would leave it, but for the sync below.
        # What our script makes there is its account's only.
        command = f"umask 077; test -s {target} || exit {MISSING}; exec {shlex.join(words)}"
        given = json.dumps(request).encode()
        for _ in range(2):
            answer = _Answer(take)
            code, stderr = self.connection.stream(
                command,
                answer.hear,
                timeout_s=timeout_s,
                limit_bytes=limit_bytes + CHATTER_BYTES_MAX,
                input=given,
            )
            if answer.size > limit_bytes:
                raise Untrusted(
                    f"{self.connection.host} answered `{verb}` with more than was asked for"
                )
            if code != MISSING:
                break
            temp = f"{target}.$$.tmp"
            self.ship(
                f"umask 077; mkdir -p {HOME} && cat > {temp}"
                f" && {{ sync {temp} 2> /dev/null || sync; }}"
                f" && mv -f {temp} {target}",
                source,
                timeout_s,
            )
        return code, stderr

    def ship(self, command: str, source: bytes, timeout_s: float) -> None:
        """Write our script there; raises `RemoteError` if the home directory takes no files."""
        try:
            self.connection.run(command, timeout_s=timeout_s, input=source)
        except CommandFailed as error:
            if error.result.exit_code in KILLED:
                raise
            said = shorten(error.result.stderr or error.result.stdout) or "it does not say why"
            raise RemoteError(
                f"nothing can be written below the home directory on {self.connection.host}: "
                f"{said}",
                hint=f"`{HOME}/` there has to be a folder of that account, on a disk with room",
            ) from error

    def failure(self, verb: str, code: int, text: bytes, stderr: bytes) -> CommandFailed:
        """Describe a script that could not run."""
        result = CommandResult(
            exit_code=code,
            stdout=text[-2000:].decode("utf-8", "replace"),
            stderr=stderr[-4000:].decode("utf-8", "replace"),
        )
        hint = ""
        if code == 127:
            hint = (
                f"is there a Python >= 3.8 named `{self.python}` on {self.connection.host.address}?"
            )
        return CommandFailed(f"{self.python} {self.path.name} {verb}", result, hint=hint)


class _Answer:
    """Hands on what follows the mark, however the output is cut into pieces."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self._chatter: bytes | None = b""
        self.size = 0

    def hear(self, data: bytes) -> None:
        """Take the next piece of output."""
        if self._chatter is not None:
            before, mark, data = (self._chatter + data).partition(MARK)
            self._chatter = None if mark else before[-CHATTER_BYTES_MAX:]
        if data:
            self.size += len(data)
            self._take(data)


def tree_cache(root: str) -> str:
    """Name the file there that remembers the hashes of the tree `root`."""
    return f"{HOME}/.hashes-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"


def read_answer(data: bytes, *, verb: str, source: str) -> dict[str, Any]:
    """Return the table that the helper answers with; raises `Garbled` with the reason."""
    try:
        answer = untrusted.parse(data, bytes_max=ANSWER_BYTES_MAX)
    except untrusted.NotPlain as error:
        raise Garbled(f"{source} answered `{verb}` with what cannot be read: {error}") from error
    if not isinstance(answer, dict):
        raise Garbled(f"{source} answered `{verb}` with what is no object")
    return answer
