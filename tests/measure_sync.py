"""Measures pushes and pulls against rsync over a connection of a given round trip.

Needs PYTHONPATH=.:tests. Prints a line a measurement: what, round trip, tool, seconds. The figures
of docs/benchmarks.md come from here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support import slow_proxy, sshd

from remote.ssh import connect
from remote.sync.api import pull, push
from remote.sync.plan import SyncOptions


def main() -> None:
    """Measure everything for every round trip asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt-ms", type=float, nargs="*", default=[0, 50])
    parser.add_argument("--big-mb", type=int, default=200)
    parser.add_argument("--channels", type=int, default=SyncOptions().channels)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many, big = root / "many", root / "big"
        for path in (many, big):
            path.mkdir()
        for number in range(1000):
            (many / f"{number:04}").write_bytes(os.urandom(4096))
        with (big / "file").open("wb") as file:
            for _ in range(chosen.big_mb):
                file.write(os.urandom(1 << 20))
        with sshd.serve(root / "server") as server:
            for rtt_ms in chosen.rtt_ms:
                with slow_proxy.run_proxy_process(server.port, delay_s=rtt_ms / 2000) as port:
                    for tree in (many, big):
                        measure(server, port, tree, chosen, rtt_ms)


def measure(
    server: sshd.Sshd, port: int, tree: Path, chosen: argparse.Namespace, rtt_ms: float
) -> None:
    """Measure one tree over one connection, with every tool."""
    options = SyncOptions(channels=chosen.channels, python=sys.executable)
    host = replace(server.host(), port=port)
    there, back = server.home / "qft" / "there", tree.parent / "back"

    def ours() -> None:
        with connect(host) as connection:
            push(connection, tree, "qft/there", options=options)

    def home() -> None:
        with connect(host) as connection:
            pull(connection, "qft/there", back, options=options)

    def rsync() -> None:
        shell = (
            f"ssh -p {port} -i {server.client_key} -o StrictHostKeyChecking=no"
            " -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        )
        subprocess.run(
            ["rsync", "-r", "-e", shell, f"{tree}/", f"{server.user}@127.0.0.1:qft/there"],
            check=True,
        )

    for name, work, before in (
        ("push", ours, [there]),
        ("push again", ours, []),
        ("rsync", rsync, [there]),
        ("pull", home, [back]),
    ):
        report(f"{tree.name:5} rtt {rtt_ms:3g} ms  {name:10}", work, before, chosen.repeat)


def report(name: str, work: Callable[[], None], before: list[Path], repeat: int) -> None:
    """Run a few times into nothing, print all times."""
    times = []
    for _ in range(repeat):
        for path in before:
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    shown = " ".join(f"{spent:6.2f}" for spent in sorted(times))
    print(f"{name} {shown} s", flush=True)  # noqa: T201  (a measuring script talks)


if __name__ == "__main__":
    main()
