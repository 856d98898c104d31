"""Runs on the rented machine: when nobody needs it any more, it gives itself back to Azure.

It needs nothing of ours and nobody's laptop. Standard library only, because it is shipped as text
in the first-boot data and started by systemd before anything is installed. It never shuts the
machine down: a machine that is switched off from inside goes on billing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

LOOK_EVERY_S = 60.0
GIVEN_EVERY_S = 600.0
TOKEN_PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource={audience}"  # noqa: S105  (a path)
COMPUTE_PATH = "/metadata/instance/compute?api-version=2021-02-01"
API_VERSION = "@api-version@"
"""Of the order to deallocate; the first-boot text carries that of `api_versions.py` instead."""


def main(arguments: Sequence[str]) -> int:
    """Look once a minute; deallocate when there is a reason. Ends only with `--once`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="home directory of the SSH user")
    parser.add_argument("--idle-s", type=float, default=2700.0, help="patience with silence")
    parser.add_argument("--done-s", type=float, default=600.0, help="the same once training ended")
    parser.add_argument("--every-s", type=float, default=LOOK_EVERY_S, help="how often to look")
    parser.add_argument("--ssh-port", type=int, default=22)
    parser.add_argument("--boot-at", type=float, default=booted_s(Path("/proc/uptime")))
    parser.add_argument("--imds", default="http://169.254.169.254")
    parser.add_argument("--arm", default="https://management.azure.com")
    parser.add_argument("--audience", default="https://management.azure.com/")
    parser.add_argument("--once", action="store_true")
    chosen = parser.parse_args(arguments)
    visited_s = time.time()  # boot counts as a visit
    while True:
        now_s = time.time()
        if any(ssh_sessions(Path("/proc/net") / name, chosen.ssh_port) for name in ("tcp", "tcp6")):
            visited_s = now_s
        silence_s = min(chosen.done_s, chosen.idle_s) if is_over(chosen.home) else chosen.idle_s
        reason = why_end(
            now_s=now_s,
            active_s=last_activity_s(chosen.home, visited_s),
            limit_s=limit_of(chosen.home, chosen.boot_at),
            idle_s=silence_s,
        )
        given_back = bool(reason) and deallocate_self(chosen, reason)
        if chosen.once:
            return 0 if given_back or not reason else 1
        time.sleep(max(GIVEN_EVERY_S, chosen.every_s) if given_back else chosen.every_s)


def why_end(*, now_s: float, active_s: float, limit_s: float | None, idle_s: float) -> str:
    """Why the machine should go now; empty if it should not."""
    if limit_s is not None and now_s >= limit_s:
        return "the budget's time is over"
    if now_s - active_s >= idle_s:
        return f"no trainer and no visitor for {now_s - active_s:.0f} s"
    return ""


def is_over(home: Path) -> bool:
    """Whether the trainer that last wrote its heartbeat has ended, well or badly."""
    newest, phase = 0.0, ""
    for path in home.glob("qft/*/run/status.json"):
        try:
            written_s, status = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # replaced just now: it is alive
            return False
        if written_s > newest:
            newest = written_s
            phase = str(status.get("phase")) if isinstance(status, dict) else ""
    return phase in {"done", "failed"}


def last_activity_s(home: Path, visited_s: float) -> float:
    """When a trainer last wrote its heartbeat, or somebody was here, whichever is later."""
    times = [visited_s]
    for path in home.glob("qft/*/run/status.json"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # replaced just now, which is a sign of life that the next look sees
            continue
    return max(times)


def limit_of(home: Path, boot_s: float) -> float | None:
    """The end of the budget in seconds since 1970, as the laptop wrote it; None if it did not.

    One from before the last boot has been kept already: whoever started the machine again has more
    to spend, and will write down how much. Until then silence counts, as without a limit.
    """
    path = home / "qft" / "limit"
    try:
        return float(path.read_text(encoding="ascii")) if path.stat().st_mtime > boot_s else None
    except (OSError, ValueError):
        return None


def booted_s(uptime: Path) -> float:
    """When this machine was switched on, in seconds since 1970; 0 if the kernel does not tell."""
    try:
        return time.time() - float(uptime.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0


def ssh_sessions(table: Path, port: int) -> int:
    """How many connections to SSH are established, from the kernel's own table."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return 0
    rows = [line.split() for line in lines]
    return sum(
        len(row) > 3 and row[1].endswith(f":{port:04X}") and row[3] == "01"  # established
        for row in rows
    )


def deallocate_self(chosen: argparse.Namespace, reason: str) -> bool:
    """Ask Azure to deallocate this machine, as itself; whether Azure agreed."""
    sys.stderr.write(f"giving this machine back: {reason}\n")
    try:
        compute = ask(f"{chosen.imds}{COMPUTE_PATH}", headers={"Metadata": "true"})
        page = f"{chosen.imds}{TOKEN_PATH.format(audience=chosen.audience)}"
        token = ask(page, headers={"Metadata": "true"})["access_token"]
        ask(
            f"{chosen.arm}{compute['resourceId']}/deallocate?api-version={API_VERSION}",
            headers={"Authorization": f"Bearer {token}", "Content-Length": "0"},
            method="POST",
        )
    except (OSError, HTTPException, ValueError, KeyError) as error:  # urllib's are OSErrors
        sys.stderr.write(f"Azure did not take it: {error}\n")
        return False
    return True


def ask(url: str, *, headers: dict[str, str], method: str = "GET") -> dict[str, str]:
    """One request, never through a proxy for the metadata service; the JSON answer."""
    opener = urllib.request.build_opener(
        *([urllib.request.ProxyHandler({})] if "/metadata/" in url else [])
    )
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  (ours)
    with opener.open(request, timeout=30) as answer:
        text = answer.read()
    status = json.loads(text) if text else {}
    if not isinstance(status, dict):
        raise ValueError(f"{url} answers {text[:80]!r}")  # noqa: TRY004  (of what was read)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
