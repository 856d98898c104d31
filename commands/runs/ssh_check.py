"""Signs in to the user's own machine before a run begins, so that silence is told soon."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from commands.runs import factory
from commands.runs.home import RunFolder
from commands.ui.errors import HostError
from infra.config import VmTable
from remote import errors, ssh

T = TypeVar("T")
STEP_S = 6.0
"""For each of: a TCP connection, the server's greeting, the login."""
LIMIT_S = 17.0
"""For all of it, the look-up of the name too, for which no limit can be given."""


def check_ssh_host(vm: VmTable, folder: RunFolder) -> None:
    """Raise HostError, within `LIMIT_S`, unless the machine lets us in.

    Raises UsageError without a pinned key or a key file. Nothing is written on either side.
    """
    sign_in(vm, folder).close()


def sign_in(vm: VmTable, folder: RunFolder, *, limit_s: float = LIMIT_S) -> ssh.SshConnection:
    """Connect to the machine of `provider: ssh`, or raise HostError that says why not."""
    table = factory.need_ssh(vm)
    factory.check_host_key(table)
    host = ssh.Host(
        address=table.host,
        port=table.port,
        user=table.user,
        key_path=factory.user_key(vm, folder),
        host_key=table.host_key,
    )
    try:
        return in_time(lambda: ssh.connect(host, timeout_s=STEP_S), str(host), limit_s)
    except errors.RemoteError as error:
        hint = f"{error.hint}; " if error.hint else ""
        raise HostError(
            f"{error}; nothing was begun there",
            hint=f"{hint}`qft doctor` looks at every step of the way there",
        ) from error


def in_time(ask: Callable[[], T], where: str, limit_s: float) -> T:
    """Do what may wait for a resolver, in a thread of its own; raises `Unreachable` if it does."""
    answers: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        found, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise errors.Unreachable(
            f"no connection to {where}: it did not answer within {limit_s:g} s",
            hint="is the machine running, and is its name right?",
        ) from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # the first of a pair without an error
