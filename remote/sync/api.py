"""Makes a tree of files on the machine equal to one here, or the other way round, over SFTP.

Every file is whole or absent: it travels into a partial file, its sha256 is verified where it has
arrived, it is fsynced and renamed. Equal files do not travel; an interrupted transfer is resumed; a
disk that is too small is noticed before anything is overwritten. See docs/sync.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from remote.errors import Damaged, shorten
from remote.on_machine import tree_ops
from remote.ssh import SshConnection
from remote.sync.local import StaleError, translate_local_errors
from remote.sync.manifest import DEFAULT_LIMITS, Limits, Tree
from remote.sync.plan import DEFAULT_OPTIONS, Progress, SyncOptions, SyncReport
from remote.sync.pull import list_source, pull_once
from remote.sync.push import push_once
from remote.sync.transfer import Transfer


def push(
    connection: SshConnection,
    local: Path | Mapping[str, Path],
    remote: str,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    options: SyncOptions = DEFAULT_OPTIONS,
) -> SyncReport:
    """Make the directory `remote` there hold what `local` holds; leave what is equal as it is.

    `local` is a directory (links to files and directories in it are followed), or files by the path
    that they get below `remote`; `remote` is relative to the user's home there. Files that only the
    machine has stay, unless `options.delete`. Safe to repeat after any failure: a cut connection is
    `Unreachable`, and the next push resumes. Raises `NoSpace` before a byte travels if the disk
    there is too small, `Damaged` if a source keeps changing while it is read, `RemoteError` if
    there is nothing at `local`.
    """
    transfer = Transfer(
        connection=connection, remote=remote, options=options, on_progress=on_progress
    )
    with translate_local_errors(local if isinstance(local, Path) else "this computer"):
        return retry_while_stale(lambda: push_once(transfer, local), options.attempts)


def pull(  # noqa: PLR0913  (the contract between rooms)
    connection: SshConnection,
    remote: str,
    local: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    on_progress: Callable[[Progress], None] | None = None,
    options: SyncOptions = DEFAULT_OPTIONS,
) -> SyncReport:
    """Make the directory `local` here hold what `remote` holds there; leave what is equal as it is.

    The machine is not trusted: whatever it says, nothing outside `local` is written, and nothing at
    all if its list of files is illegal or above `limits` (`Untrusted`). Otherwise as `push`, with
    `NoSpace` for the disk here. A `remote` that does not exist is `Absent`, not an empty tree.
    """
    transfer = Transfer(
        connection=connection, remote=remote, options=options, on_progress=on_progress
    )

    def give_up() -> None:
        with tree_ops.exclusive_lock(str(local)):
            tree_ops.remove_partial_dir(str(local))

    with translate_local_errors(local):
        return retry_while_stale(
            lambda: pull_once(transfer, local, limits), options.attempts, give_up
        )


def list_files(
    connection: SshConnection,
    remote: str,
    *,
    limits: Limits = DEFAULT_LIMITS,
    options: SyncOptions = DEFAULT_OPTIONS,
) -> Tree:
    """Return size and sha256 of the files in the directory `remote`, as the machine says them.

    Nothing of them travels. Raises as `pull` does, and `Absent` if there is no such directory.
    """
    return list_source(Transfer(connection=connection, remote=remote, options=options), limits).tree


def retry_while_stale(
    attempt: Callable[[], SyncReport], attempts: int, give_up: Callable[[], None] = lambda: None
) -> SyncReport:
    """Repeat an attempt whose source changed while it was read; then raise `Damaged`."""
    for left in reversed(range(max(attempts, 1))):
        try:
            return attempt()
        except StaleError as stale:
            if left == 0:
                names = shorten(", ".join(sorted(stale.paths)[:5]), 500)
                give_up()
                raise Damaged(
                    f"{names} did not arrive as announced, {attempts} times over:"
                    " it changes while it is read, or a disk or line is faulty",
                    hint="wait until whatever writes it is done, then repeat the command",
                ) from stale
    raise AssertionError("the last attempt returns or raises")
