"""The log of a running training is copied home in whole lines, through restarts and bad answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import sshd

from commands.runs.live_files import EVERY_S, METRICS, STATUS, LiveFiles, LogCopy
from infra.run.heartbeat import read_heartbeat
from remote.ssh import Host, SshConnection, connect


def lines(*steps: int, word: str = "") -> bytes:
    """Records of these steps."""
    return b"".join(json.dumps({"step": step, "loss": word}).encode() + b"\n" for step in steps)


def copy_of(path: Path, bytes_max: int = 1 << 20) -> LogCopy:
    """A copy at home, empty at first."""
    return LogCopy(path=path, bytes_max=lambda: bytes_max)


def read_there(copy: LogCopy, log: bytes) -> bool:
    """Let a copy take what the log there has from its anchor on."""
    return copy.take(log[copy.end.offset :])


def test_a_log_that_grows_is_followed_line_by_line(tmp_path: Path) -> None:
    """Only what is new is written, and a torn last line waits for its end."""
    copy = copy_of(tmp_path / "live" / METRICS)
    for last in range(1, 30):
        read_there(copy, lines(*range(1, last)) + b'{"step": 9')

        assert copy.path.read_bytes() == lines(*range(1, last)) if last > 1 else True
    assert copy.end.offset == len(lines(*range(1, 27)))


def test_a_last_line_that_was_written_anew_is_replaced(tmp_path: Path) -> None:
    """The trainer adds a validation to the record of its last step."""
    copy = copy_of(tmp_path / METRICS)
    read_there(copy, lines(1, 2, 3))
    amended = lines(1, 2) + lines(3, word="with its validation")
    read_there(copy, amended)

    assert copy.path.read_bytes() == amended


def test_a_log_that_was_cut_back_is_read_anew_once_that_is_sure(tmp_path: Path) -> None:
    """After an eviction the log goes on from the checkpoint; one odd read changes nothing."""
    copy = copy_of(tmp_path / METRICS)
    read_there(copy, lines(*range(1, 41)))
    cut = lines(*range(1, 21)) + lines(21, 22, word="again")

    assert not read_there(copy, cut)
    assert copy.path.read_bytes() == lines(*range(1, 41))
    assert read_there(copy, cut)
    read_there(copy, cut)
    assert copy.path.read_bytes() == cut


@pytest.mark.parametrize(
    "bad",
    [
        b"not json\n",
        b'{"loss": 1}\n',
        lines(3),
        lines(2),
        b'{"step": "5"}\n',
        b"[" * 10_000 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_record_of_a_further_step_is_left_there(tmp_path: Path, bad: bytes) -> None:
    """A machine can write what it likes: the page shows the lines before it."""
    copy = copy_of(tmp_path / METRICS)
    read_there(copy, lines(1, 2, 3) + bad + lines(9))

    assert copy.path.read_bytes() == lines(1, 2, 3)


def test_no_more_is_kept_than_the_run_can_make(tmp_path: Path) -> None:
    """A log that grows beyond its limit is followed no further."""
    copy = copy_of(tmp_path / METRICS, bytes_max=100)
    read_there(copy, lines(1, 2))
    read_there(copy, lines(*range(1, 50)))

    assert copy.path.read_bytes() == lines(1, 2)


def test_several_lines_of_a_step_are_a_log_of_samples(tmp_path: Path) -> None:
    """The rows that are answered again and again have a line each for one step."""
    copy = LogCopy(path=tmp_path / "samples.jsonl", bytes_max=lambda: 1 << 20, repeats=True)
    for log in (lines(0, 0, 0), lines(0, 0, 0, 50, 50, 50), lines(0, 0, 0, 50, 50, 50, 40)):
        read_there(copy, log)

    assert copy.path.read_bytes() == lines(0, 0, 0, 50, 50, 50)


@given(cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=8))
def test_whatever_becomes_of_the_log_the_copy_ends_equal(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int]]
) -> None:
    """Cut back and grown in any way, after three reads the copy is the log."""
    copy = copy_of(tmp_path_factory.mktemp("live") / METRICS)
    log: list[bytes] = []
    for at, (kept, more) in enumerate(cuts):
        log = log[:kept]
        log += [lines(step, word=str(at)) for step in range(len(log) + 1, len(log) + more + 1)]
        for _ in range(3):
            read_there(copy, b"".join(log))

        assert copy.path.read_bytes() == b"".join(log)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    """A machine with a run directory."""
    with sshd.serve(tmp_path / "machine") as running:
        (running.home / "run").mkdir()
        yield running


@pytest.fixture
def connection(server: sshd.Sshd) -> Iterator[SshConnection]:
    """A connection to it, as a driver has one."""
    host = Host(
        address="127.0.0.1",
        port=server.port,
        user=server.user,
        key_path=server.client_key,
        host_key=server.host_key,
    )
    with connect(host) as made:
        yield made


def test_a_step_is_at_home_seconds_after_the_trainer_wrote_it(
    server: sshd.Sshd, connection: SshConnection, tmp_path: Path
) -> None:
    """Over real SSH: a log that is not there yet, that grows, and that is long."""
    files = LiveFiles(
        connection=lambda: connection,
        remote_run="run",
        home=tmp_path / "live",
        limits={METRICS: lambda: 1 << 24},
    )
    files.copy(connection)
    assert not (tmp_path / "live").exists()
    log = server.home / "run" / METRICS
    log.write_bytes(lines(*range(1, 60_000)))  # more than comes in one part
    files.copy(connection)
    assert (tmp_path / "live" / METRICS).read_bytes() == log.read_bytes()

    files.start()
    try:
        with log.open("ab") as file:
            file.write(lines(60_000))
        ends_s = time.monotonic() + 30 * EVERY_S
        while (tmp_path / "live" / METRICS).read_bytes() != log.read_bytes():
            assert time.monotonic() < ends_s
            time.sleep(0.05)
    finally:
        files.stop()


def test_a_status_is_kept_when_it_is_another_one(tmp_path: Path) -> None:
    """Phase and step of the trainer stand beside the log; silence is not kept."""
    files = LiveFiles(connection=lambda: None, remote_run="run", home=tmp_path, limits={})
    files.note_status(read_heartbeat(b"nothing"))
    assert not (tmp_path / STATUS).exists()
    files.note_status(read_heartbeat(b'{"phase": "training", "step": 3, "steps": 9}'))

    assert json.loads((tmp_path / STATUS).read_text())["step"] == 3
    files.note_status(read_heartbeat(b""))  # another trainer has not begun to beat
    assert not (tmp_path / STATUS).exists()
