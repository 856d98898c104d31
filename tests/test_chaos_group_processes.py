"""Processes of a killed group are found, whoever is their parent and whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from chaos_group.processes import MARK, await_true, marked, rank_of, send
from chaos_group.rounds import living

PARENT = """
import subprocess, sys, time
words = [sys.executable, "-c", "import time; time.sleep(600)", "--rank", "2"]
subprocess.Popen(words)
time.sleep(600)
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark; whoever has it is ended afterwards."""
    made = uuid.uuid4().hex
    yield made
    for pid in marked(made):
        send(pid, signal.SIGKILL)


def start_parent(mark: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that starts another; return it, and the other's number."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env={**os.environ, MARK: mark})

    def ranks() -> list[int]:
        return [pid for pid in marked(mark) if rank_of(pid) is not None]

    assert await_true(lambda: len(ranks()) == 1, limit_s=60)
    return parent, ranks()[0]


def test_a_process_that_outlives_its_parent_is_found(mark: str) -> None:
    """A rank is found by its mark and its number, also when the process above it was killed."""
    parent, rank = start_parent(mark)
    send(parent.pid, signal.SIGKILL)
    parent.wait()

    assert marked(mark) == [rank]
    assert rank_of(rank) == 2


def test_a_silent_process_lives_and_a_dead_one_does_not(mark: str) -> None:
    """One that was stopped still lives; one that has ended but waits to be reaped does not."""
    parent, rank = start_parent(mark)
    send(rank, signal.SIGSTOP)
    stopped = living([rank, parent.pid])
    send(parent.pid, signal.SIGKILL)

    assert stopped == [rank, parent.pid]
    assert await_true(lambda: living([parent.pid]) == [], limit_s=60)
    parent.wait()
    assert living([rank]) == [rank]


def test_waiting_ends_when_the_time_is_over() -> None:
    """What never holds is given up, and what holds is seen."""
    assert not await_true(lambda: False, limit_s=0.05)
    assert await_true(lambda: True, limit_s=0)
