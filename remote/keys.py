"""Ed25519 key pairs in OpenSSH's format; a private key never exists with a mode wider than 0600."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import os
from pathlib import Path

from remote.errors import RemoteError


def generate(path: Path) -> str:
    """Make a key pair: `path` (0600) and `path.pub`; return the public `authorized_keys` line.

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
    """Make a key pair in memory: the OpenSSH PEM of the private key and the public line."""
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
    """Split a public key line into its type and its blob; a leading host pattern is skipped.

    Raises `RemoteError` if there is no well-formed key in it.
    """
    words = line.split()
    for kind, text in itertools.pairwise(words):
        if not kind.startswith(("ssh-", "ecdsa-", "sk-")):
            continue
        try:
            blob = base64.b64decode(text, validate=True)
        except binascii.Error:
            break
        size = int.from_bytes(blob[:4], "big")
        if blob[4 : 4 + size] == kind.encode("ascii", "replace"):
            return kind, blob
        break
    raise RemoteError(
        "the pinned host key is not a public key line",
        hint="give it as `ssh-ed25519 AAAA…`, as in /etc/ssh/ssh_host_ed25519_key.pub there",
    )


def fingerprint(line: str) -> str:
    """Name the key of a public line as OpenSSH does: `SHA256:` and base64 without padding."""
    _, blob = parse_line(line)
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return f"SHA256:{digest.rstrip('=')}"
