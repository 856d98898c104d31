"""Runs on the rented machine, and releases it when nobody needs it any more.

It needs nothing of ours and nobody's laptop. Standard library only, because it is shipped as text
in the first-boot data and started by systemd before anything is installed. How a machine is
released is its vendor's: where a machine that is switched off from inside goes on billing,
`first_boot.py` puts the vendor's own way behind this text, in the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CHECK_EVERY_S = 60.0
RELEASED_EVERY_S = 600.0
"""Pauses between checks, before and after the machine has been released."""
OLD_LIMIT_S = 240.0
"""How long after a boot a limit from before it holds again: by then, whoever started the machine on
purpose has written a new one. A cloud that starts machines by itself, as EC2 does after an
interruption, writes none, and nobody else need be there to end its bill."""
OLD_LIMIT_VISITED_S = 900.0
"""The same while somebody is connected, who may be about to write a new one."""
CUT_S = 60.0
"""How long a visitor who is gone still counts there: connections are cut, and made anew."""


def main(
    arguments: Sequence[str],
    *,
    release: Callable[[argparse.Namespace], bool] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Look once a minute; release the machine when there is a reason. Ends only with `--once`.

    `release` says whether the cloud agreed; the default is `shut_down`.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="home directory of the SSH user")
    parser.add_argument("--idle-s", type=float, default=2700.0, help="patience with silence")
    parser.add_argument("--done-s", type=float, default=600.0, help="the same once training ended")
    parser.add_argument("--every-s", type=float, default=CHECK_EVERY_S, help="how often to look")
    parser.add_argument("--ssh-port", type=int, default=22)
    parser.add_argument("--boot-at", type=float, default=booted_s(Path("/proc/uptime")))
    parser.add_argument("--old-limit-s", type=float, default=OLD_LIMIT_S)
    parser.add_argument("--old-limit-visited-s", type=float, default=OLD_LIMIT_VISITED_S)
    parser.add_argument("--once", action="store_true")
    if add_arguments is not None:
        add_arguments(parser)
    chosen = parser.parse_args(arguments)
    visited_s, seen_s = time.time(), -math.inf  # boot counts as a visit, but nobody was seen yet
    while True:
        now_s = time.time()
        if any(ssh_sessions(Path("/proc/net") / name, chosen.ssh_port) for name in ("tcp", "tcp6")):
            visited_s = seen_s = now_s
        old_from_s = old_limit_from_s(
            chosen.boot_at, seen_s, chosen.old_limit_s, chosen.old_limit_visited_s
        )
        limit_s = limit_of(chosen.home, chosen.boot_at, old_from_s=old_from_s)
        silence_s = min(chosen.done_s, chosen.idle_s) if is_over(chosen.home) else chosen.idle_s
        reason = why_end(
            now_s=now_s,
            active_s=last_activity_s(chosen.home, visited_s),
            limit_s=limit_s,
            idle_s=silence_s,
        )
        if reason:
            sys.stderr.write(f"giving this machine back: {reason}\n")
        released = bool(reason) and (release or shut_down)(chosen)
        if chosen.once:
            return 0 if released or not reason else 1
        pause_s = next_check_s(now_s, limit_s, chosen.every_s)
        time.sleep(max(RELEASED_EVERY_S, chosen.every_s) if released else pause_s)


def why_end(*, now_s: float, active_s: float, limit_s: float | None, idle_s: float) -> str:
    """Decide why the machine should be released now; empty if it should not."""
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


def limit_of(home: Path, boot_s: float, *, old_from_s: float = math.inf) -> float | None:
    """When the machine must be released, in seconds since 1970, by the limit that was written.

    None if none was. One from before the last boot holds from `old_from_s` on: whoever started the
    machine again has more to spend, and writes down how much before then. Until then silence
    counts, as without a limit.
    """
    path = home / "qft" / "limit"
    try:
        limit_s = float(path.read_text(encoding="ascii"))
        old = path.stat().st_mtime <= boot_s
    except (OSError, ValueError):
        return None
    limit_s = max(limit_s, old_from_s) if old else limit_s
    return limit_s if math.isfinite(limit_s) else None


def old_limit_from_s(
    boot_s: float, visitor_s: float, old_limit_s: float, visited_s_max: float
) -> float:
    """From when on, in seconds since 1970, a limit from before the boot at `boot_s` holds again.

    A visitor who was last seen at `visitor_s` puts it off, to `visited_s_max` after boot at most.
    """
    from_s = max(boot_s + old_limit_s, visitor_s + CUT_S)
    return min(from_s, boot_s + max(old_limit_s, visited_s_max))


def next_check_s(now_s: float, limit_s: float | None, every_s: float) -> float:
    """How many seconds to pause: `every_s`, or until the limit if that comes sooner."""
    left_s = every_s if limit_s is None else limit_s - now_s
    return min(every_s, left_s) if left_s > 0 else every_s


def booted_s(uptime: Path) -> float:
    """When this machine was switched on, in seconds since 1970; 0 if unreadable."""
    try:
        return time.time() - float(uptime.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0


def ssh_sessions(table: Path, port: int) -> int:
    """Count the established SSH connections in the kernel's own table."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return 0
    rows = [line.split() for line in lines]
    return sum(
        len(row) > 3 and row[1].endswith(f":{port:04X}") and row[3] == "01"  # established
        for row in rows
    )


def shut_down(chosen: argparse.Namespace) -> bool:
    """Switch the machine off from inside; for clouds that then cease to bill its compute."""
    del chosen
    try:
        subprocess.run(["shutdown", "-h", "now"], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"it could not be switched off: {error}\n")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
