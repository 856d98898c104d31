"""Runs one of our scripts on the machine, uploaded by content hash, so that versions never mix."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote import untrusted
from remote.errors import CommandFailed, CommandResult, Garbled, RemoteError, Untrusted, shorten
from remote.login_shell import PREAMBLE_BYTES_MAX, OutputAfterMark
from remote.on_machine import tree_ops
from remote.ssh import KILLED, SshConnection

EXIT_NO_SCRIPT = 97
"""The script has not been uploaded yet."""
EXIT_HANDLED = 3
"""The answer is an error for the caller to handle."""
FOLDER = "qft"
"""Where scripts and caches are on the machine, below the user's home."""
ANSWER_BYTES_MAX = 64 << 20
"""A list of 100,000 files has 20 MB."""


@dataclass(frozen=True, kw_only=True)
class RemoteScript:
    """One of our stand-alone scripts, run over one connection."""

    connection: SshConnection
    path: Path
    """The script here; it needs nothing but Python's standard library."""
    python: str = "python3"
    """The interpreter there."""

    def call(
        self,
        verb: str,
        request: Mapping[str, Any],
        *,
        timeout_s: float,
        after_request: Callable[[], bytes] | None = None,
    ) -> dict[str, Any]:
        """Run `verb` there and return its answer: JSON values that the caller has to check.

        An answer may carry `error` `no-space` for the caller to explain; any other error there is
        raised as `RemoteError`. Raises `CommandFailed` if the script cannot run at all.
        """
        parts: list[bytes] = []
        code, stderr = self.stream(
            verb, request, parts.append, timeout_s=timeout_s, after_request=after_request
        )
        data = b"".join(parts)
        if code not in {0, EXIT_HANDLED}:
            raise self.failure(verb, code, data, stderr)
        return self.read(verb, data)

    def read(self, verb: str, data: bytes) -> dict[str, Any]:
        """Return the answer in `data`; raises as `call` does."""
        answer = read_answer(data, verb=verb, source=str(self.connection.host))
        if answer.get("error", "no-space") != "no-space":
            message = untrusted.text(answer.get("message"), most=300) or "?"
            path = untrusted.text(answer.get("path"), most=300) or "?"
            raise RemoteError(f"{self.connection.host} could not do `{verb}`: {message} ({path})")
        return answer

    def stream(  # noqa: PLR0913  (the last three are rarely given)
        self,
        verb: str,
        request: Mapping[str, Any],
        on_output: Callable[[bytes], object],
        *,
        timeout_s: float,
        limit_bytes: int = ANSWER_BYTES_MAX,
        after_request: Callable[[], bytes] | None = None,
    ) -> tuple[int, bytes]:
        """Run `verb` there, pass its output on as it comes; return exit code and stderr.

        Uploads the script when it is not there yet. At most `limit_bytes` are passed on. What
        `after_request` returns is sent after the request; it may take its time, in another thread.
        """

        def stdin() -> Iterator[bytes]:
            yield json.dumps(request).encode() + b"\n"
            if after_request is not None:
                yield after_request()

        return self.run(verb, stdin, on_output, timeout_s=timeout_s, limit_bytes=limit_bytes)

    def run(
        self,
        verb: str,
        stdin: Callable[[], Iterator[bytes]],
        on_output: Callable[[bytes], object],
        *,
        timeout_s: float,
        limit_bytes: int,
    ) -> tuple[int, bytes]:
        """Do as `stream`, with what `stdin` yields as the input.

        It is called again after an upload, and has to begin anew then.
        """
        source = self.path.read_bytes()
        target = f"{FOLDER}/{self.path.stem}-{hashlib.sha256(source).hexdigest()[:8]}.py"
        argv = [self.python, "-I", "-S", target, verb]  # no site packages: they cost start-up time
        # Not empty: so a power cut soon after the upload would leave it, but for the sync below.
        # What our script makes there is its account's only.
        command = f"umask 077; test -s {target} || exit {EXIT_NO_SCRIPT}; exec {shlex.join(argv)}"

        for _ in range(2):
            output = OutputAfterMark(tree_ops.ANSWER_MARK.encode(), on_output)
            code, stderr = self.connection.stream(
                command,
                output.feed,
                timeout_s=timeout_s,
                limit_bytes=limit_bytes + PREAMBLE_BYTES_MAX,
                input=stdin(),
            )
            if output.size > limit_bytes:
                raise Untrusted(
                    f"{self.connection.host} answered `{verb}` with more than was asked for"
                )
            if code != EXIT_NO_SCRIPT:
                break
            temp = f"{target}.$$.tmp"
            self.upload(
                f"umask 077; mkdir -p {FOLDER} && cat > {temp}"
                f" && {{ sync {temp} 2> /dev/null || sync; }}"
                f" && mv -f {temp} {target}",
                source,
                timeout_s,
            )
        return code, stderr

    def upload(self, command: str, source: bytes, timeout_s: float) -> None:
        """Write our script there; raises `RemoteError` if the home directory takes no files."""
        try:
            self.connection.run(command, timeout_s=timeout_s, input=source)
        except CommandFailed as error:
            if error.result.exit_code in KILLED:
                raise
            reason = shorten(error.result.stderr or error.result.stdout) or "it does not say why"
            raise RemoteError(
                f"nothing can be written below the home directory on {self.connection.host}: "
                f"{reason}",
                hint=f"`{FOLDER}/` there has to be a folder of that account, on a disk with room",
            ) from error

    def failure(self, verb: str, code: int, text: bytes, stderr: bytes) -> CommandFailed:
        """Return the error for a script that could not run."""
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


def read_answer(data: bytes, *, verb: str, source: str) -> dict[str, Any]:
    """Parse the JSON object that a script answers with; raises `Garbled` with the reason."""
    try:
        answer = untrusted.parse(data, bytes_max=ANSWER_BYTES_MAX)
    except untrusted.NotPlain as error:
        raise Garbled(f"{source} answered `{verb}` with what cannot be read: {error}") from error
    if not isinstance(answer, dict):
        raise Garbled(f"{source} answered `{verb}` with what is no object")
    return answer


def hash_cache_path(root: str) -> str:
    """Return the file on the machine that caches the hashes of the tree `root` there."""
    return f"{FOLDER}/.hashes-{hashlib.sha256(root.encode()).hexdigest()[:16]}.json"
