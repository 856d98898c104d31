"""What the ranks of a group send each other is what the arithmetic says, counted between two hosts.

It needs root and Linux's network namespaces; where they are missing, the tests say so and are
skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support import tiny
from support.scale_tables import ordered_bytes
from support.two_hosts import Host, NoNamespaces, two_hosts

NUMBERS = 2_000_000
GRADIENT_BYTES = 4 * NUMBERS
SUMS = 3
PORT = 29555


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts on one cable."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(two_hosts())
        except NoNamespaces as error:
            pytest.skip(f"bytes cannot be counted between two hosts here: {error}")
        yield found


class Rank:
    """One rank on a host of its own, which waits before and after its sums."""

    def __init__(self, rank: int, host: Host, store: Host, *, micro_batches: int) -> None:
        self.host = host
        words = [rank, 2, f"{store.address}:{PORT}", "-", NUMBERS, micro_batches, SUMS, "wait"]
        self._process = subprocess.Popen(
            host.command([sys.executable, "-m", "support.group_sums", *map(str, words)]),
            cwd=tiny.ROOT,
            env={
                **tiny.quiet_environment(),
                "PYTHONPATH": os.pathsep.join([str(tiny.ROOT / "tests"), str(tiny.ROOT)]),
                "GLOO_SOCKET_IFNAME": host.interface,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            self._process.kill()
            raise AssertionError(self._process.communicate()[1][-3000:])
        return line

    def go_on(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("micro_batches", [2, 6])
def test_a_rank_sends_what_the_formula_says(hosts: tuple[Host, Host], micro_batches: int) -> None:
    """Two ranks send (k+1)/2 G each in a step, within 5 %, and both have the same sum."""
    with ExitStack() as stack:
        ranks = []
        for number, host in enumerate(hosts):
            rank = Rank(number, host, hosts[0], micro_batches=micro_batches)
            stack.callback(rank.end)
            ranks.append(rank)
        assert [rank.read() for rank in ranks] == ["ready", "ready"]
        before = [rank.host.sent_bytes() for rank in ranks]
        for rank in ranks:
            rank.go_on()
        records = [json.loads(rank.read()) for rank in ranks]
        after = [rank.host.sent_bytes() for rank in ranks]

    expected = SUMS * ordered_bytes(GRADIENT_BYTES, 2, micro_batches // 2)
    assert records[0]["digest"] == records[1]["digest"]
    for start, end in zip(before, after, strict=True):
        assert end - start == pytest.approx(expected, rel=0.05)
