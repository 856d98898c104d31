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
from pathlib import Path

LOOK_EVERY_S = 60.0
REFUSED_EVERY_S = 600.0
TOKEN_PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource={audience}"  # noqa: S105  (a path)
COMPUTE_PATH = "/metadata/instance/compute?api-version=2021-02-01"
DEALLOCATE_VERSION = "2024-07-01"


def main(arguments: Sequence[str]) -> int:
    """Look once a minute; deallocate when there is a reason. Ends only with `--once`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="home directory of the SSH user")
    parser.add_argument("--idle-s", type=float, default=2700.0, help="patience with silence")
    parser.add_argument("--imds", default="http://169.254.169.254")
    parser.add_argument("--arm", default="https://management.azure.com")
    parser.add_argument("--audience", default="https://management.azure.com/")
    parser.add_argument("--once", action="store_true")
    chosen = parser.parse_args(arguments)
    began_s = time.time()
    while True:
        now_s = time.time()
        connected = ssh_sessions(Path("/proc/net/tcp")) + ssh_sessions(Path("/proc/net/tcp6"))
        active_s = now_s if connected else last_sign_of_life_s(chosen.home, began_s)
        reason = why_end(
            now_s=now_s, active_s=active_s, limit_s=limit_of(chosen.home), idle_s=chosen.idle_s
        )
        given_back = bool(reason) and give_back(chosen, reason)
        if chosen.once:
            return 0 if given_back or not reason else 1
        time.sleep(REFUSED_EVERY_S if reason else LOOK_EVERY_S)


def why_end(*, now_s: float, active_s: float, limit_s: float | None, idle_s: float) -> str:
    """Why the machine should go now; empty if it should not."""
    if limit_s is not None and now_s >= limit_s:
        return "the budget's time is over"
    if now_s - active_s >= idle_s:
        return f"no trainer and no visitor for {now_s - active_s:.0f} s"
    return ""


def last_sign_of_life_s(home: Path, began_s: float) -> float:
    """When a trainer last wrote its heartbeat; boot counts as a sign of life too."""
    times = [began_s]
    for path in home.glob("qft/*/run/status.json"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # replaced just now, which is a sign of life that the next look sees
            continue
    return max(times)


def limit_of(home: Path) -> float | None:
    """The end of the budget in seconds since 1970, as the laptop wrote it; None if it did not."""
    try:
        return float((home / "qft" / "limit").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def ssh_sessions(table: Path) -> int:
    """How many connections to port 22 are established, from the kernel's own table."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return 0
    rows = [line.split() for line in lines]
    return sum(
        len(row) > 3 and row[1].endswith(":0016") and row[3] == "01"  # 0x16 is port 22
        for row in rows
    )


def give_back(chosen: argparse.Namespace, reason: str) -> bool:
    """Ask Azure to deallocate this machine, as itself; whether Azure agreed."""
    sys.stderr.write(f"giving this machine back: {reason}\n")
    try:
        compute = ask(f"{chosen.imds}{COMPUTE_PATH}", headers={"Metadata": "true"})
        page = f"{chosen.imds}{TOKEN_PATH.format(audience=chosen.audience)}"
        token = ask(page, headers={"Metadata": "true"})["access_token"]
        ask(
            f"{chosen.arm}{compute['resourceId']}/deallocate?api-version={DEALLOCATE_VERSION}",
            headers={"Authorization": f"Bearer {token}", "Content-Length": "0"},
            method="POST",
        )
    except (OSError, ValueError, KeyError) as error:  # urllib's errors are OSErrors
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
    return dict(json.loads(text)) if text else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
