"""Copies folders of a run from one of its machines to another, over their private network.

The copy saves home from sending them twice; it is not what is trusted. Whoever calls this pushes
the same folders from home afterwards, which compares every file and sends what is missing or
differs.

Each copy has a key of its own. Its public half lets one address run one command on the source,
which streams the folders, and is removed afterwards; its private half is on the target, in a folder
that only its user can read, as long as the copy lasts. The source's host key is pinned.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from remote import keys
from remote.errors import Untrusted
from remote.ssh import SshConnection

COPY_S = 4 * 3600.0
SCRIPT_S = 60.0
AUTHORIZED = ".ssh/authorized_keys"
ADD = f'umask 077; mkdir -p .ssh && printf "%s\\n" "$1" >> {AUTHORIZED}'
REMOVE = (
    f"umask 077; [ -f {AUTHORIZED} ] || exit 0;"
    f' grep -v -F -e "$1" {AUTHORIZED} > {AUTHORIZED}.qft; mv {AUTHORIZED}.qft {AUTHORIZED}'
)
FETCH = """
umask 077
own=$(mktemp -d) || exit 1
trap 'rm -rf "$own"' EXIT
trap 'exit 1' HUP INT TERM
cat > "$own/key"
printf 'peer %s\\n' "$1" > "$own/known_hosts"
mkdir -p "$2" || exit 1
{
  ssh -F /dev/null -i "$own/key" -o IdentitiesOnly=yes -o BatchMode=yes \\
    -o StrictHostKeyChecking=yes -o HostKeyAlias=peer -o UserKnownHostsFile="$own/known_hosts" \\
    -o GlobalKnownHostsFile=/dev/null -o ConnectTimeout=20 -o ServerAliveInterval=15 \\
    -b "$3" -p "$4" -l "$5" "$6" < /dev/null
  echo $? > "$own/code"
} | tar -C "$2" --no-same-owner --no-same-permissions -xf - || exit 1
exit "$(cat "$own/code")"
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A machine of the run as its peers reach it."""

    address: str
    """On the private network."""
    port: int
    user: str
    host_key: str


def copy_folders(  # noqa: PLR0913  (two machines, what lies on them, and whose turn it is)
    source: SshConnection,
    target: SshConnection,
    *,
    peer: Peer,
    own_address: str,
    base: str,
    folders: Sequence[str],
    lock: threading.Lock,
) -> None:
    """Copy `folders` below `base` from the source, which is `peer` to the target, to the target.

    `own_address` is the target's, the only one from which the key is accepted. `lock` is held while
    the source's list of keys changes. Raises `Untrusted` for an address that is none, and whatever
    `SshConnection.run` does; the key is removed all the same.
    """
    for address in (peer.address, own_address):
        _require_address(address)
    private, public = keys.pair()
    kind, body = public.split()[:2]
    words = ["tar", "-C", base, "-cf", "-", *folders]
    if not all(re.fullmatch(r"[\w./-]+", word) for word in words):
        raise ValueError(f"a folder's name cannot be in an authorized command: {words}")
    line = f'restrict,from="{own_address}",command="{shlex.join(words)}" {kind} {body}'
    with lock:
        source.run(["sh", "-c", ADD, "add", line], timeout_s=SCRIPT_S)
    try:
        target.run(
            [
                *("sh", "-c", FETCH, "fetch"),
                *(peer.host_key, base, own_address, str(peer.port), peer.user, peer.address),
            ],
            timeout_s=COPY_S,
            input=private,
        )
    finally:
        with lock:
            source.run(["sh", "-c", REMOVE, "remove", body], timeout_s=SCRIPT_S)


def _require_address(text: str) -> None:
    """Raise `Untrusted` for what a machine or a cloud calls an address and is none."""
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise Untrusted(f"`{text[:60]}` is no address in a private network") from error
