"""Generates and reads SSH keys in OpenSSH's format; no private key has a mode wider than 0600."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
from pathlib import Path

from remote.errors import RemoteError

TYPES = ("ssh-ed25519", "ecdsa-", "ssh-rsa")
NO_KEY = "the pinned host key is not a public key line"
HOW_TO_GIVE = "give it as `ssh-ed25519 AAAA…`, as in /etc/ssh/ssh_host_ed25519_key.pub there"
NEW_KEY = "pin the key that the machine has now: `qft doctor` reads it, compare it there"


def generate(path: Path) -> str:
    """Generate a key pair, `path` (0600) and `path.pub`; return the `authorized_keys` line.

    Whole or absent, and safe to repeat: a key that exists is kept and its line returned, so that a
    caller who was killed in between does not lock itself out of a machine.
    """
    if not path.exists():
        private, _ = pair()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temp.unlink(missing_ok=True)
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, unlike a rename, never replaces the key of somebody who was faster.
            os.link(temp, path)
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)  # or a power cut may leave a machine whose key is gone
            os.close(directory)
        except FileExistsError:
            return public_line(path)
        finally:
            temp.unlink()
    line = public_line(path)
    path.with_name(f"{path.name}.pub").write_text(f"{line}\n", encoding="ascii")
    return line


def pair(comment: str = "qft") -> tuple[str, str]:
    """Generate a key pair in memory: the private key as OpenSSH PEM, and the public line."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
    ).decode("ascii")
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return private, f"{public.decode('ascii')} {comment}"


def public_line(path: Path, comment: str = "qft") -> str:
    """Derive the public line from the private key at `path`.

    Raises `RemoteError` if the file is no unencrypted private key in OpenSSH's format.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form

    try:
        content = path.read_bytes()
    except OSError as error:
        raise RemoteError(f"the private key {path} cannot be read: {error.strerror}") from error
    try:
        key = form.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RemoteError(
            f"{path} is not a private key that can be read without a password: {error}",
            hint="name another key file, or make one with `ssh-keygen -t ed25519 -N ''`",
        ) from error
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return f"{public.decode('ascii')} {comment}"


def parse_line(line: str) -> tuple[str, bytes]:
    """Parse a public key line into its type and its blob; a leading host pattern is skipped.

    Of several lines, as in the output of `ssh-keyscan` or a `known_hosts` file, the key of the best
    type is taken; comments are skipped. `@cert-authority` names who signs keys, which is no key of
    a host; a key on an `@revoked` line is not accepted. Raises `RemoteError` if no well-formed key
    is left.
    """
    found: list[tuple[str, bytes]] = []
    revoked: set[bytes] = set()
    marked = ""
    for text in line.splitlines():
        fields = text.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        key = _key_in(fields)
        if not marker and key is None:
            raise RemoteError(NO_KEY, hint=HOW_TO_GIVE)
        if not marker and key is not None:
            found.append(key)
        elif marker == "@revoked" and key is not None:
            revoked.add(key[1])
        marked = marked or marker
    left = [key for key in found if key[1] not in revoked]
    if left:
        return min(left, key=lambda key: _rank(key[0]))
    if found:
        raise RemoteError("the pinned host key is revoked by its own `@revoked` line", hint=NEW_KEY)
    if marked:
        why = "revokes a key" if marked == "@revoked" else "does not name the key of one host"
        raise RemoteError(f"the pinned host key is a `{marked}` line, which {why}", hint=NEW_KEY)
    raise RemoteError(NO_KEY, hint=HOW_TO_GIVE)


def plain_line(line: str) -> str:
    """Return a public key line with its type and its key alone; raises as `parse_line` does."""
    kind, blob = parse_line(line)
    return f"{kind} {base64.b64encode(blob).decode('ascii')}"


def _key_in(fields: list[str]) -> tuple[str, bytes] | None:
    """Return the key of one line: its type, and its blob, which begins with the type as well."""
    for kind, text in itertools.pairwise(fields):
        if not kind.startswith(("ssh-", "ecdsa-", "sk-")):
            continue
        try:
            blob = base64.b64decode(text, validate=True)
        except ValueError:  # also of letters that are no ASCII
            return None
        size = int.from_bytes(blob[:4], "big")
        return (kind, blob) if blob[4 : 4 + size] == kind.encode("ascii", "replace") else None
    return None


def _rank(kind: str) -> int:
    """Return the rank of a key type; the best is 0."""
    return next((at for at, start in enumerate(TYPES) if kind.startswith(start)), len(TYPES))


def fingerprint(line: str) -> str:
    """Return the fingerprint of a public line as OpenSSH does: `SHA256:`, unpadded base64."""
    _, blob = parse_line(line)
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return f"SHA256:{digest.rstrip('=')}"
