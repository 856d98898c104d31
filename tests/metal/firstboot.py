"""Plays cloud-init as far as first-boot data uses it: files, host keys, commands, in its order.

What cloud-init would only warn about, in a log that nobody reads, is an error here.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metal.state import Store
from metal.units import enabled, start

HEAD = "#cloud-config\n"
BYTES_MAX = 65_535
SUPPORTED_KEYS: dict[str, type] = {
    "bootcmd": list,
    "disable_root": bool,
    "runcmd": list,
    "ssh_authorized_keys": list,
    "ssh_deletekeys": bool,
    "ssh_genkeytypes": list,
    "ssh_keys": dict,
    "ssh_pwauth": bool,
    "users": list,
    "write_files": list,
}
"""Of cloud-init's many keys, those that are played."""
USER_KEYS: dict[str, tuple[type, ...]] = {
    "gecos": (str,),
    "groups": (str, list),
    "lock_passwd": (bool,),
    "name": (str,),
    "shell": (str,),
    "ssh_authorized_keys": (list,),
    "sudo": (str, list),
}
"""Of the many facts about one user, those that are played."""
DEFAULT_USER = "ubuntu"
"""The image's own, made unless `users` is there without the word `default`."""
KEY = re.compile(r"(rsa|ecdsa|ed25519)_(private|public)")
SCRIPTS = "var/lib/cloud/instance/scripts"
FAILED = "('scripts_user', RuntimeError('Runparts: 1 failures (runcmd) in 1 attempted commands'))"


def parsed(custom_data: str) -> dict[str, Any]:
    """The cloud-config in `customData`; raises ValueError for what Azure would not take."""
    return document_of(base64.b64decode(custom_data, validate=True), bytes_max=BYTES_MAX)


def document_of(data: bytes, *, bytes_max: int) -> dict[str, Any]:
    """The cloud-config in first-boot data, plain or compressed by gzip; raises ValueError if not.

    Keys that are not played are refused too: nothing may rest on what no test has seen work.
    """
    import yaml  # only here: the machine's own programs start without it

    if len(data) > bytes_max:
        raise ValueError(f"{len(data)} bytes are more than the cloud's {bytes_max}")
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    if not text.startswith(HEAD):
        raise ValueError(f"the first line is not `{HEAD.strip()}`, so it is no cloud-config")
    document = yaml.safe_load(text)
    if not isinstance(document, dict):
        raise ValueError("a cloud-config is a mapping")  # noqa: TRY004  (of its text)
    if offences := offences_of(document):
        raise ValueError("; ".join(offences))
    return document


def offences_of(document: dict[str, Any]) -> list[str]:
    """What cloud-init would ignore, or what is not played."""
    offences = [
        f"`{key}` is not known, or not a {SUPPORTED_KEYS.get(key, dict).__name__}"
        for key, value in document.items()
        if not isinstance(value, SUPPORTED_KEYS.get(key, type(None)))
    ]
    if offences:
        return offences
    offences += [f"`{one}` is no command" for one in commands(document) if not is_command(one)]
    offences += [
        f"`{one}` is no file" for one in document.get("write_files", []) if not is_file(one)
    ]
    offences += [f"`{one}` is no user" for one in document.get("users", []) if not is_user(one)]
    keys = document.get("ssh_keys", {})
    offences += [f"`{key}` is no host key" for key in keys if not KEY.fullmatch(key)]
    return offences


def login_of(document: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Who may log in, with which key, and whether as root, too; raises ValueError for several.

    The key is empty where nobody may: cloud-init makes no user with a password here.
    """
    keys = list(document.get("ssh_authorized_keys", []))
    users = document.get("users", ["default"])
    logins = [(DEFAULT_USER, keys, True)] if "default" in users else []
    logins += [
        (one["name"], one.get("ssh_authorized_keys", []), "NOPASSWD:" in str(one.get("sudo", "")))
        for one in users
        if one != "default"
    ]
    able = [one for one in logins if one[1]] or logins[:1] or [(DEFAULT_USER, [], True)]
    if len(able) > 1:
        raise ValueError(f"several users who may log in are not played: {[one[0] for one in able]}")
    ((name, listed, sudo),) = able
    return name, "\n".join(listed), sudo


def is_user(one: object) -> bool:
    """Whether it is the word `default`, or a user with a name and public keys in full lines."""
    if one == "default":
        return True
    return (
        isinstance(one, dict)
        and bool(one.get("name"))
        and all(isinstance(value, USER_KEYS.get(key, ())) for key, value in one.items())
        and all(
            isinstance(key, str) and key.startswith(("ssh-", "ecdsa-", "sk-")) and "\n" not in key
            for key in one.get("ssh_authorized_keys", [])
        )
    )


def commands(document: Mapping[str, Any]) -> list[Any]:
    """All commands of a cloud-config."""
    return [*document.get("bootcmd", []), *document.get("runcmd", [])]


def is_command(one: object) -> bool:
    """Whether cloud-init takes it as a command: a line for the shell, or a list of words."""
    return isinstance(one, str) or (
        isinstance(one, list) and bool(one) and all(isinstance(word, str) for word in one)
    )


def is_file(one: object) -> bool:
    """Whether it is a plain file with a name from the root and octal permissions in a string."""
    return (
        isinstance(one, dict)
        and set(one) == {"path", "permissions", "content"}
        and str(one["path"]).startswith("/")
        and isinstance(one["content"], str)
        and re.fullmatch(r"0[0-7]{3}", str(one["permissions"])) is not None
    )


def install(directory: Path, document: Mapping[str, Any]) -> None:
    """The stage before SSH: files and host keys, each with its permissions; keeps the rest."""
    root = directory / "root"
    for one in document.get("write_files", []):
        put(root, one["path"], one["content"], int(one["permissions"], 8))
    for name, text in document.get("ssh_keys", {}).items():
        kind, half = name.split("_")
        path = f"/etc/ssh/ssh_host_{kind}_key{'.pub' * (half == 'public')}"
        put(root, path, text, 0o600 if half == "private" else 0o644)
    for name in ("bootcmd", "runcmd"):
        put(root, f"/{SCRIPTS}/{name}", shellified(document.get(name, [])), 0o700)


def put(root: Path, path: str, text: str, mode: int) -> None:
    """Write one file of the machine."""
    place = root / path.removeprefix("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def shellified(listed: list[Any]) -> str:
    """The script that cloud-init makes of commands: one a line, and a failure stops none."""
    lines = [one if isinstance(one, str) else shlex.join(one) for one in listed]
    return "\n".join(["#!/bin/sh", *lines]) + "\n"


def boot(store: Store, _arguments: list[str]) -> int:
    """Boot from within the machine, as root: what cloud-init and systemd start, in their order."""
    ssh_port = listening(Path(store.directory).parent)
    with store.change() as state:
        state.ssh_port = ssh_port
        first = state.booting
    script(store, "bootcmd")
    for unit in enabled(store):
        start(store, unit)
    if first:
        code = script(store, "runcmd")
        with store.change() as state:
            state.booting = False
            state.cloud_init_error = state.cloud_init_error or FAILED * bool(code)
    return 0


def listening(machine: Path) -> int:
    """The port on which this life's SSH answers, once it does."""
    while True:
        if (machine / "guest.json").exists():
            orders = json.loads((machine / "orders.json").read_text())
            record = json.loads((machine / "guest.json").read_text())
            if record["life"] == orders["life"]:
                return int(record["ssh_port"])
        time.sleep(0.02)


def script(store: Store, name: str) -> int:
    """Run one of cloud-init's scripts."""
    path = f"{store.read().root}/{SCRIPTS}/{name}"
    return subprocess.run([f"{store.directory}/bin/sh", path], check=False).returncode
