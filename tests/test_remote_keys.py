"""Keys are what OpenSSH takes, private ones are 0600 from the first moment, none is overwritten."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from remote import keys
from remote.errors import RemoteError


def test_generate(tmp_path: Path) -> None:
    """The pair is accepted by OpenSSH, and only its owner may read the private half."""
    path = tmp_path / "deep" / "key"
    line = keys.generate(path)
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], check=True, capture_output=True, text=True
    ).stdout

    assert line.split()[:2] == derived.split()[:2]
    assert line.startswith("ssh-ed25519 AAAA")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (tmp_path / "deep" / "key.pub").read_text() == f"{line}\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["key", "key.pub"]


def test_generate_again_keeps_the_key(tmp_path: Path) -> None:
    """A key that exists is kept, so that a repeated start does not lock itself out."""
    first = keys.generate(tmp_path / "key")
    (tmp_path / "key.pub").unlink()

    assert keys.generate(tmp_path / "key") == first


def test_fingerprint_is_openssh_s(tmp_path: Path) -> None:
    """A fingerprint is written as `ssh-keygen -l` writes it."""
    line = keys.generate(tmp_path / "key")
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "key")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert keys.fingerprint(line) == shown.split()[1]
    assert keys.fingerprint(f"[1.2.3.4]:22 {line}") == shown.split()[1]


def test_pairs_differ() -> None:
    """Every machine gets a key of its own."""
    assert keys.pair() != keys.pair()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"ssh-ed25519 AAAA"])
def test_unreadable_key_file(tmp_path: Path, content: bytes) -> None:
    """A file that holds no private key is refused with the command that makes one."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(RemoteError, match="is not a private key") as caught:
        keys.public_line(tmp_path / "key")

    assert "ssh-keygen" in caught.value.hint


def test_missing_key_file(tmp_path: Path) -> None:
    """A key file that is not there is an error of ours, not a traceback."""
    with pytest.raises(RemoteError, match="cannot be read"):
        keys.public_line(tmp_path / "nowhere")


def test_key_with_a_password(tmp_path: Path) -> None:
    """A key behind a password is refused: nobody is there to type it at night."""
    path = tmp_path / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)]
    subprocess.run(command, check=True)
    with pytest.raises(RemoteError, match="without a password"):
        keys.public_line(path)
