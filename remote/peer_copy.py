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
ADD = f"""
umask 077
mkdir -p .ssh || exit 1
# A last line without an end would become one with ours, and admit nobody any more.
[ -s {AUTHORIZED} ] && [ -n "$(tail -c 1 {AUTHORIZED})" ] && printf '\\n' >> {AUTHORIZED}
printf '%s\\n' "$1" >> {AUTHORIZED}
"""
REMOVE = f"""
umask 077
[ -f {AUTHORIZED} ] || exit 0
grep -v -F -e "$1" {AUTHORIZED} > {AUTHORIZED}.qft
# 1 is that no line is left; anything else, such as a full disk, must not empty the list.
[ $? -le 1 ] || {{ rm -f {AUTHORIZED}.qft; exit 1; }}
mv {AUTHORIZED}.qft {AUTHORIZED}
"""
FETCH = """
umask 077
peer_key=$1 base=$2 own_address=$3 port=$4 user=$5 address=$6
shift 6
mkdir -p "$base" || exit 1
rm -rf "$base"/.copy-*
missing=
for folder in "$@"; do [ -e "$base/$folder" ] || missing=1; done
[ -n "$missing" ] || exit 0
own=$(mktemp -d "$base/.copy-XXXXXX") || exit 1
mkdir "$own/new" || exit 1
trap 'rm -rf "$own"' EXIT
trap 'exit 1' HUP INT TERM
cat > "$own/key"
printf 'peer %s\\n' "$peer_key" > "$own/known_hosts"
{
  ssh -F /dev/null -i "$own/key" -o IdentitiesOnly=yes -o BatchMode=yes \\
    -o StrictHostKeyChecking=yes -o HostKeyAlias=peer -o UserKnownHostsFile="$own/known_hosts" \\
    -o GlobalKnownHostsFile=/dev/null -o ConnectTimeout=20 -o ServerAliveInterval=15 \\
    -b "$own_address" -p "$port" -l "$user" "$address" < /dev/null
  echo $? > "$own/code"
} | tar -C "$own/new" --no-same-owner --no-same-permissions -xf - || exit 1
[ "$(cat "$own/code")" = 0 ] || exit 1
for folder in "$@"; do
  # A link could lead the push that follows out of the run's folder: none is taken over.
  [ -z "$(find "$own/new/$folder" ! -type f ! -type d | head -n 1)" ] || exit 1
  [ -d "$own/new/$folder" ] && [ ! -L "$own/new/$folder" ] || exit 1
done
for folder in "$@"; do
  rm -rf "$base/$folder" && mv "$own/new/$folder" "$base/$folder" || exit 1
done
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

    Nothing is copied where all of them are there already, whole or not: the push goes on with them.
    Folders that hold a link, or anything but files and folders, are not taken over.

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
                *folders,
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
