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


def lines(*names: str) -> dict[str, str]:
    """Public lines of new keys, by name."""
    return {name: " ".join(keys.pair()[1].split()[:2]) for name in names}


HASHED = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg="


@pytest.mark.parametrize(
    "text",
    [
        "{a}",
        "gpu.example {a} root@gpu",
        "[gpu.example]:2222 {a}",
        "gpu*.example,!gpu7.example,10.0.0.? {a}",
        HASHED + " {a}",
        "# gpu:22 SSH-2.0-OpenSSH_9.2\n\ngpu {a}\n",
        "@revoked * {b}\ngpu {a}",
        "@cert-authority *.example {b}\ngpu {a}",
        "gpu {b}\ngpu {a}\n@revoked gpu {b}",
    ],
)
def test_the_forms_of_listed_hosts_are_read(text: str) -> None:
    """A pin may be given as any line that names a host's key, among others, too."""
    key_lines = lines("a", "b")

    assert " ".join(keys.fingerprint(text.format(**key_lines)).split()) == keys.fingerprint(
        key_lines["a"]
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("@revoked * {a}", "`@revoked` line"),
        ("@revoked gpu {a}\ngpu {a}", "revoked by its own"),
        ("gpu {a}\n@revoked * {a}", "revoked by its own"),
        ("@cert-authority *.example {a}", "`@cert-authority` line"),
        ("@anything gpu {a}", "`@anything` line"),
        ("@cert-authority\tgpu\t{a}", "`@cert-authority` line"),
        ("gpu ssh-ed25519", "not a public key line"),
        ("gpu {a}\nnonsense", "not a public key line"),
        (
            "gpu ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            "not a",
        ),
        ("ssh-ed25519 \u00e9\u00e9\u00e9\u00e9", "not a public key line"),
        ("", "not a public key line"),
        ("# only a comment", "not a public key line"),
    ],
)
def test_what_pins_no_key_is_refused(text: str, why: str) -> None:
    """Authorities and revoked keys are no pins, whatever stands around them."""
    with pytest.raises(RemoteError, match=why) as caught:
        keys.parse_line(text.format(**lines("a", "b")))

    assert caught.value.hint


def test_of_several_types_the_best_is_pinned(tmp_path: Path) -> None:
    """What `ssh-keyscan` prints is one pin: the ed25519 key, or the next best there is."""
    for kind in ("rsa", "ecdsa"):
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / kind)]
        subprocess.run(argv, check=True)
    rsa, ecdsa = (f"gpu {(tmp_path / f'{kind}.pub').read_text()}" for kind in ("rsa", "ecdsa"))

    assert keys.parse_line(rsa + ecdsa + f"gpu {lines('a')['a']}")[0] == "ssh-ed25519"
    assert keys.parse_line(rsa + ecdsa)[0] == "ecdsa-sha2-nistp256"
    assert keys.parse_line(rsa)[0] == "ssh-rsa"
