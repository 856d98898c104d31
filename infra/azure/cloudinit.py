"""The first boot: the machine presents the host key that we pinned before it existed."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.azure import self_release
from infra.azure.api_versions import API_VERSIONS
from infra.azure.naming import VM

CUSTOM_DATA_BYTES_MAX = 65_535
"""Azure's limit, counted before base64."""
PRIME_NOTICES = (
    'nohup sh -c \'curl -s -m 180 --noproxy "*" -H Metadata:true'
    ' "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"\''
    " >/dev/null 2>&1 &"
)


def custom_data(
    *, host_private_key: str, host_public_key: str, self_release_arguments: Sequence[str] = ()
) -> str:
    """The base64 `customData` that makes cloud-init install exactly this ed25519 host key.

    `customData` is returned neither by ARM nor by the metadata service; `userData` would be, to
    every process. The key is throwaway: it dies with the machine. JSON is YAML, so the document
    needs no YAML writer and nothing in a key can break out of it. With
    `self_release_arguments`, the machine also runs `self_release.py` with those arguments.

    Raises ValueError if the document outgrows Azure's limit.
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
        # The first question switches eviction notices on, and may take two minutes to be answered:
        # asked at boot, they flow by the time training starts.
        "bootcmd": [PRIME_NOTICES],
        "write_files": [_SSHD],
    }
    if self_release_arguments:
        document["write_files"] += _self_release_files(self_release_arguments)
        document["runcmd"] = [["systemctl", "enable", "--now", "qft-watch.service"]]
    text = f"#cloud-config\n{json.dumps(document, indent=1)}\n".encode()
    if len(text) > CUSTOM_DATA_BYTES_MAX:
        message = f"first-boot data of {len(text)} bytes exceeds Azure's {CUSTOM_DATA_BYTES_MAX}"
        raise ValueError(message)
    return base64.b64encode(text).decode()


def self_release_text() -> str:
    """`self_release.py` as it is shipped, with the api-version of its one request."""
    text = Path(self_release.__file__).read_text(encoding="utf-8")
    return text.replace(self_release.API_VERSION, API_VERSIONS[VM], 1)


def _self_release_files(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The files that make `self_release.py` a service of the system, not of the user."""
    return [
        {
            "path": WATCH_PATH,
            "permissions": "0755",
            "content": self_release_text(),
        },
        {
            "path": "/etc/systemd/system/qft-watch.service",
            "permissions": "0644",
            "content": _UNIT.format(path=WATCH_PATH, arguments=shlex.join(arguments)),
        },
    ]


# A computer that dies does not hang up: without this its connection would count as a visitor for
# hours, and the machine would wait, and bill, for somebody who cannot come back.
_SSHD = {
    "path": "/etc/ssh/sshd_config.d/60-qft.conf",
    "permissions": "0644",
    "content": "ClientAliveInterval 60\nClientAliveCountMax 5\n",
}
WATCH_PATH = "/usr/local/lib/qft-watch.py"
_UNIT = """[Unit]
Description=Gives this machine back to Azure when nobody needs it any more
After=network-online.target

[Service]
ExecStart=/usr/bin/python3 {path} {arguments}
Restart=always
RestartSec=60

[Install]
WantedBy=multi-user.target
"""
