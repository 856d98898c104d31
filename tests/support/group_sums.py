"""One rank that adds up made gradients with the others, as a step does, and prints its seconds.

python -m support.group_sums RANK SIZE HOST:PORT LISTEN_FD NUMBERS MICRO_BATCHES SUMS [wait]

NUMBERS is how many numbers a gradient has. LISTEN_FD is a listening socket of rank 0 for that
address, or - where a rank has none. Prints a line of JSON: the median seconds of a sum, and a
digest of the last one. With `wait` it says `ready` before the sums and reads a line from stdin
before and after them, so that whoever counts bytes can do so at both moments. Ranks on hosts of
their own name the interface of each in GLOO_SOCKET_IFNAME: a real group has one machine, and takes
the interface that the store's address belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from trainer.eviction import PreemptionFlag
from trainer.group import joined
from trainer.group.peers import Peers


def main(words: Sequence[str]) -> None:
    """Join the other ranks, add, and print."""
    rank, size, address, listen_fd, numbers, micro_batches, sums = words[:7]
    torch.set_num_threads(1)
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        vars(joined)["interface_of"] = lambda _host: interface
    with joined.join(
        rank=int(rank),
        size=int(size),
        address=address,
        listen_fd=None if listen_fd == "-" else int(listen_fd),
        device=torch.device("cpu"),
        flag=PreemptionFlag(time.monotonic),
        on_message=print_aside,
    ) as peers:
        parameter = torch.nn.Parameter(torch.zeros(int(numbers)))
        add_up(peers, parameter, int(micro_batches))  # the first one makes connections
        waits = words[7:] == ["wait"]
        if waits:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            sys.stdin.readline()
        seconds = [add_up(peers, parameter, int(micro_batches)) for _ in range(int(sums))]
        assert parameter.grad is not None
        digest = hashlib.sha256(parameter.grad.numpy().tobytes()).hexdigest()
        record = {"seconds": statistics.median(seconds), "digest": digest}
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()
        if waits:
            sys.stdin.readline()


def print_aside(text: str) -> None:
    """Print a line where it is no result."""
    sys.stderr.write(text + "\n")


def add_up(peers: Peers, parameter: torch.nn.Parameter, micro_batches: int) -> float:
    """Add the gradients of one step; return how long the sum itself took."""
    spent_s = 0.0
    began_s = time.perf_counter()
    gathered = peers.open_sum({"weight": parameter}, micro_batches)
    spent_s += time.perf_counter() - began_s
    for number in peers.mine(micro_batches):
        made = torch.Generator().manual_seed(number)
        parameter.grad = torch.randn(parameter.numel(), generator=made)
        began_s = time.perf_counter()
        gathered.add(number, torch.tensor(float(number), dtype=torch.float64))
        spent_s += time.perf_counter() - began_s
    began_s = time.perf_counter()
    gathered.finish()
    return spent_s + time.perf_counter() - began_s


if __name__ == "__main__":
    main(sys.argv[1:])
