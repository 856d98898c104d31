"""A limit written before a boot that nobody of ours asked for still ends the bill."""

from __future__ import annotations

import argparse
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from infra.azure.deallocate_self import add_arguments
from infra.renting.first_boot import one_file
from infra.renting.self_release import (
    CUT_S,
    OLD_LIMIT_S,
    OLD_LIMIT_VISITED_S,
    limit_of,
    next_check_s,
    old_limit_from_s,
)

BOOT_S = 1_800_000_000.0
NEVER = -math.inf


class Computer:
    """A machine with the program as it is shipped, and a `shutdown` that notes that it was run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "watch.py"
        self.script.write_text(one_file())
        self.limit = directory / "home" / "qft" / "limit"
        self.limit.parent.mkdir(parents=True)
        shutdown = directory / "bin" / "shutdown"
        shutdown.parent.mkdir()
        shutdown.write_text(f'#!/bin/sh\necho "$@" >> {directory}/called\n')
        shutdown.chmod(0o755)

    def write_limit(self, ends_s: float, *, written_s: float) -> None:
        """Write the end of the budget as of some time."""
        self.limit.write_text(f"{ends_s:.0f}\n")
        os.utime(self.limit, (written_s, written_s))

    def is_off_after_look(self, boot_s: float, more: Sequence[str] = ()) -> bool:
        """Let the program look once; whether it has switched the machine off."""
        argv = [sys.executable, "-I", str(self.script), "--once", "--home"]
        argv += [str(self.directory / "home"), "--boot-at", str(boot_s), *more]
        environ = {"PATH": f"{self.directory / 'bin'}:/usr/bin:/bin"}
        subprocess.run(argv, env=environ, check=True, timeout=120)
        return (self.directory / "called").exists()


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    """A machine whose budget ended two minutes before the cloud started it again."""
    return Computer(tmp_path)


@pytest.fixture
def visitor() -> Iterator[int]:
    """A port of this computer with an established connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), closing(listener.accept()[0]):
            yield port


@pytest.mark.parametrize(("minutes", "off"), [(3, False), (4.1, True), (600, True)])
def test_old_limit_holds_four_minutes_after_a_boot(
    computer: Computer, minutes: float, *, off: bool
) -> None:
    """Whoever started the machine on purpose has that long to write a new limit."""
    boot_s = time.time() - 60 * minutes
    computer.write_limit(boot_s - 120, written_s=boot_s - 3600)

    assert computer.is_off_after_look(boot_s) is off


def test_old_limit_that_is_still_to_come_is_waited_for(computer: Computer) -> None:
    """A boot long before the end of the budget changes nothing about that end."""
    boot_s = time.time() - 600
    computer.write_limit(boot_s + 3600, written_s=boot_s - 3600)

    assert not computer.is_off_after_look(boot_s)


def test_new_limit_replaces_the_old_one(computer: Computer) -> None:
    """Written after the boot it counts at once, whether it is later than the old one or past."""
    boot_s = time.time() - 600
    computer.write_limit(time.time() + 3600, written_s=boot_s + 30)
    assert not computer.is_off_after_look(boot_s)

    computer.write_limit(time.time() - 1, written_s=time.time())
    assert computer.is_off_after_look(time.time() - 10)


@pytest.mark.parametrize(("minutes", "off"), [(5, False), (14, False), (16, True)])
def test_visitor_puts_an_old_limit_off_for_a_bounded_time(
    computer: Computer, visitor: int, minutes: float, *, off: bool
) -> None:
    """Somebody who is connected may be about to write a new one, but not for ever."""
    boot_s = time.time() - 60 * minutes
    computer.write_limit(boot_s - 120, written_s=boot_s - 3600)

    assert computer.is_off_after_look(boot_s, ["--ssh-port", str(visitor)]) is off


@pytest.mark.parametrize(
    ("visitor_s", "after_boot_s"),
    [
        (NEVER, OLD_LIMIT_S),
        (BOOT_S + 10, OLD_LIMIT_S),
        (BOOT_S + OLD_LIMIT_S, OLD_LIMIT_S + CUT_S),
        (BOOT_S + 86400, OLD_LIMIT_VISITED_S),
        (BOOT_S - 86400, OLD_LIMIT_S),
    ],
)
def test_time_from_which_an_old_limit_holds(visitor_s: float, after_boot_s: float) -> None:
    """Four minutes after boot, a minute after the last visitor, a quarter of an hour at most."""
    from_s = old_limit_from_s(BOOT_S, visitor_s, OLD_LIMIT_S, OLD_LIMIT_VISITED_S)

    assert from_s - BOOT_S == after_boot_s


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "\u00e9"])
def test_limit_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    """Then silence alone ends the bill."""
    (tmp_path / "qft").mkdir()
    (tmp_path / "qft" / "limit").write_text(text)

    assert limit_of(tmp_path, 0.0, old_from_s=5.0) is None
    assert limit_of(tmp_path, time.time() + 60, old_from_s=5.0) is None


@pytest.mark.parametrize(
    ("limit_s", "pause_s"), [(None, 60.0), (110.0, 10.0), (400.0, 60.0), (100.0, 60.0), (5.0, 60.0)]
)
def test_next_look_is_at_the_limit(limit_s: float | None, pause_s: float) -> None:
    """The end is not missed by a pause, and a release that was refused is not asked for at once."""
    assert next_check_s(100.0, limit_s, 60.0) == pause_s


def test_limit_of_an_azure_machine_ends_with_its_boot() -> None:
    """Azure starts no machine by itself: whoever did has more to spend."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old-limit-s", type=float, default=OLD_LIMIT_S)
    add_arguments(parser)

    assert parser.parse_args([]).old_limit_s == math.inf
    assert old_limit_from_s(BOOT_S, NEVER, math.inf, OLD_LIMIT_VISITED_S) == math.inf
