"""Builds cloud-init data: the machine presents the host key that was pinned before it existed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.renting import self_release


def cloud_config(  # noqa: PLR0913  (each is one part of the document)
    *,
    host_private_key: str,
    host_public_key: str,
    boot_commands: Sequence[str] = (),
    self_release_text: str = "",
    self_release_arguments: Sequence[str] = (),
    user: str = "",
    public_key: str = "",
) -> bytes:
    """Build the document that makes cloud-init install exactly this ed25519 host key.

    The key is throwaway: it dies with the machine. JSON is YAML, so the document needs no YAML
    writer and nothing in a key can break out of it. With `self_release_text`, a program of
    `one_file`, the machine also runs that with those arguments. With `user`, for vendors that make
    no user themselves, it has exactly that one, who logs in with `public_key` and may use sudo.
    """
    document: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {
            "ed25519_private": host_private_key,
            "ed25519_public": host_public_key,
        },
        "ssh_pwauth": False,
        "disable_root": True,
        "bootcmd": list(boot_commands),
        "write_files": [_SSHD],
    }
    if user:
        document["users"] = [_user(user, public_key)]
    if self_release_text:
        document["write_files"] += _service_files(self_release_text, self_release_arguments)
        document["runcmd"] = [["systemctl", "enable", "--now", "qft-watch.service"]]
    return f"#cloud-config\n{json.dumps(document, indent=1)}\n".encode()


def one_file(release: Path | None = None) -> str:
    """Compose `self_release.py` and the vendor's way to release a machine into one file.

    `release` is a module that imports from `self_release` in one line and calls its `main` with a
    `release` of its own. Without one the machine switches itself off.
    """
    text = Path(self_release.__file__).read_text(encoding="utf-8")
    if release is None:
        return text
    program, _, _ = text.partition('\n\nif __name__ == "__main__":\n')
    lines = release.read_text(encoding="utf-8").splitlines()
    kept = [one for one in lines if not one.startswith(("from __future__ ", "from infra."))]
    return program + "\n\n" + "\n".join(kept) + "\n"


def _user(name: str, public_key: str) -> dict[str, Any]:
    """Describe the only user: without the word `default` beside it, the image's own gets no key."""
    return {
        "name": name,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [public_key.strip()],
    }


def _service_files(text: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Build the files that make a program a service of the system, not of the user."""
    return [
        {"path": PROGRAM_PATH, "permissions": "0755", "content": text},
        {
            "path": "/etc/systemd/system/qft-watch.service",
            "permissions": "0644",
            "content": _UNIT.format(path=PROGRAM_PATH, arguments=shlex.join(arguments)),
        },
    ]


# A computer that dies does not hang up: without this its connection would count as a visitor for
# hours, and the machine would wait, and bill, for somebody who cannot come back.
_SSHD = {
    "path": "/etc/ssh/sshd_config.d/60-qft.conf",
    "permissions": "0644",
    "content": "ClientAliveInterval 60\nClientAliveCountMax 5\n",
}
PROGRAM_PATH = "/usr/local/lib/qft-watch.py"
_UNIT = """[Unit]
Description=Gives this machine back when nobody needs it any more
After=network-online.target

[Service]
ExecStart=/usr/bin/python3 {path} {arguments}
Restart=always
RestartSec=60

[Install]
WantedBy=multi-user.target
"""
