"""A job on the machine is started once, outlives the line, and ends with a code or visibly not."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support import ssh_servers

from remote.errors import RemoteError
from remote.job import Job, JobState, JobStatus
from remote.on_machine import job_agent
from remote.ssh import SshConnection, connect


@pytest.fixture(scope="module", params=ssh_servers.KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssh_servers.RunningServer]:
    """A server of each kind for the file."""
    with ssh_servers.start_server(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """A connection of the test's own."""
    with connect(server.host) as opened:
        yield opened


@pytest.fixture
def job(connection: SshConnection, tmp_path: Path) -> Iterator[Job]:
    """A job in a directory of its own, stopped at the end."""
    made = Job(connection=connection, directory=f"qft/{tmp_path.name}")
    yield made
    made.stop(grace_s=0)


def start(job: Job, shell: str, **env: str) -> JobStatus:
    """Start a line of shell."""
    return job.start(["sh", "-c", shell], env=env, cwd=".")


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for something that another process does; fail if it never comes."""
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.02)


def ended(job: Job) -> JobStatus:
    """Wait until the job has ended."""
    wait_until(lambda: job.status().state is not JobState.RUNNING)
    return job.status()


def test_absent_before_start(job: Job) -> None:
    """A job that was never started is absent, and looking at it makes nothing."""
    assert JobState.ABSENT is job.status().state
    assert job.tail().data == b""


def test_runs_to_its_end(job: Job) -> None:
    """A job's exit code, environment, directory and both outputs come back."""
    first = job.start(
        ["sh", "-c", "echo $WORD; pwd; echo oops >&2; exit 7"], env={"WORD": "hi"}, cwd="qft"
    )

    assert first.started
    assert (ended(job).state, job.status().exit_code, first.attempt) == (JobState.EXITED, 7, 1)
    lines = job.tail().data.decode().splitlines()
    assert [lines[0], lines[2]] == ["hi", "oops"]
    assert lines[1].endswith("/qft")


def test_start_while_running_starts_nothing(job: Job) -> None:
    """A second start attaches to the running job."""
    first = start(job, "sleep 60")
    second = start(job, "echo never")

    assert (first.started, second.started) == (True, False)
    assert (first.pid, JobState.RUNNING) == (second.pid, second.state)
    assert job.tail().data == b""


def test_start_race(server: ssh_servers.RunningServer, job: Job) -> None:
    """Of eight clients that start at the same moment on eight connections, one starts it."""

    def attempt(number: int) -> JobStatus:
        with connect(server.host) as connection:
            return start(
                Job(connection=connection, directory=job.directory), f"echo {number}; sleep 60"
            )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))

    assert sum(answer.started for answer in answers) == 1
    assert len({answer.pid for answer in answers}) == 1
    wait_until(lambda: job.status().log_bytes > 0)
    assert len(job.tail().data.split()) == 1


def test_start_after_end_is_the_next_attempt(job: Job) -> None:
    """A job that has ended starts anew, and the log goes on."""
    start(job, "echo one")
    ended(job)
    again = start(job, "echo two")
    ended(job)

    assert (again.attempt, again.started) == (2, True)
    assert job.tail().data == b"one\ntwo\n"


def test_survives_disconnect(server: ssh_servers.RunningServer, tmp_path: Path) -> None:
    """A job goes on when the connection that started it is cut, and is found by the next."""
    directory = f"qft/{tmp_path.name}"
    with connect(server.host) as connection:
        wait = f"until [ -e {directory}/go ]; do sleep 0.05; done"
        begun = start(
            Job(connection=connection, directory=directory), f"{wait}; echo later; exit 3"
        )
    with connect(server.host) as connection:
        job = Job(connection=connection, directory=directory)

        assert (begun.pid, JobState.RUNNING) == (job.status().pid, job.status().state)
        (server.home / directory / "go").touch()
        assert ended(job).exit_code == 3
        assert job.tail().data == b"later\n"


def test_kill_9_of_the_job_alone(job: Job) -> None:
    """A job killed with SIGKILL ends with 137, as a shell would say."""
    pid = start(job, "sleep 60").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    assert (ended(job).state, job.status().exit_code) == (JobState.EXITED, 137)


def test_kill_9_of_everything(job: Job, server: ssh_servers.RunningServer) -> None:
    """A job killed together with its supervisor is lost: not running, no exit code."""
    start(job, "sleep 60")
    lock = server.home / job.directory / "job.lock"
    found = holders(lock)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # the supervisor must not outlive the job
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    assert (ended(job).state, job.status().exit_code) == (JobState.LOST, None)
    assert start(job, "true").started


def test_supervisor_killed_leaves_a_running_job(
    job: Job, server: ssh_servers.RunningServer
) -> None:
    """Without its supervisor a job still runs, cannot be started twice, and can be stopped."""
    start(job, "exec sleep 60")
    record = json.loads((server.home / job.directory / "job.json").read_text())
    os.kill(record["keeper"], signal.SIGKILL)

    assert JobState.RUNNING is job.status().state
    assert not start(job, "true").started
    assert JobState.LOST is job.stop(grace_s=5).state


def test_pid_of_a_stranger_is_no_job(job: Job, server: ssh_servers.RunningServer) -> None:
    """A record that names a living process, as after a reboot, does not count as running."""
    folder = server.home / job.directory
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(f'{{"attempt": 4, "pid": {os.getpid()}, "argv": []}}')

    assert JobState.LOST is job.status().state
    assert JobState.LOST is job.stop(grace_s=0).state
    assert start(job, "true").attempt == 5


def test_torn_record(job: Job, server: ssh_servers.RunningServer) -> None:
    """A record that a crash of the disk has torn reads as absent rather than failing."""
    folder = server.home / job.directory
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"att')

    assert JobState.ABSENT is job.status().state


def test_stop_is_polite_first(job: Job) -> None:
    """Stop sends SIGTERM to the whole group, so that a job can save its state."""
    start(job, "trap 'echo saved; exit 75' TERM; echo ready; sleep 60 & wait")
    wait_until(lambda: job.status().log_bytes > 0)

    assert job.stop(grace_s=60).exit_code == 75
    assert job.tail().data == b"ready\nsaved\n"


def test_stop_kills_the_stubborn(job: Job) -> None:
    """A job that ignores SIGTERM is killed after the grace, and its children with it."""
    start(job, "trap '' TERM; sleep 61.5 & echo $!; wait; sleep 60")
    wait_until(lambda: job.status().log_bytes > 0)
    child = int(job.tail().data)

    assert job.stop(grace_s=0.2).exit_code == 137
    wait_until(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))


def test_leftovers_of_a_job_end_with_it(job: Job) -> None:
    """What a job leaves running in its group is killed when it ends: it may hold the GPU."""
    start(job, "sleep 61.5 > /dev/null 2>&1 & echo $!; exit 0")

    assert ended(job).exit_code == 0
    child = int(job.tail().data)
    wait_until(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))


def test_program_that_does_not_exist(job: Job) -> None:
    """A program that cannot be started is an error that names it, not a job."""
    with pytest.raises(RemoteError, match="no-such-program"):
        job.start(["no-such-program"], env={}, cwd=".")

    assert job.status().exit_code == 127


def test_tail_from_an_offset(job: Job) -> None:
    """The log is read in pieces that fit together, from any offset, also from its end."""
    start(job, "printf 'a\\377\\000b0123456789'")
    ended(job)
    first = job.tail(0, 4)
    rest = job.tail(first.offset)

    assert (first.data, rest.data) == (b"a\xff\x00b", b"0123456789")
    assert (rest.offset, job.tail(rest.offset).data) == (14, b"")
    assert job.tail(-3).data == b"789"
    assert job.tail(-1000, 2).data == b"a\xff"


def holders(path: Path) -> set[int]:
    """Find the processes that have a file open."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(file.resolve() == path.resolve() for file in folder.iterdir()):
                found.add(int(folder.parent.name))
    return found


def is_zombie(pid: int) -> bool:
    """Tell whether a process is dead but not yet reaped by whoever inherited it."""
    with suppress(FileNotFoundError):
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_a_talkative_job_does_not_fill_the_disk(
    job: Job, server: ssh_servers.RunningServer
) -> None:
    """The middle of a long log goes; beginning, end and every place in it stay what they were."""
    line = "a line of sixty-four bytes, again and again, until the disk is"
    start(job, f"yes '{line}' | head -n 900000; echo last; sleep 60")
    wait_until(lambda: job.tail(-5).data == b"last\n")
    size = job.status().log_bytes
    log = server.home / job.directory / "job.log"

    wait_until(
        lambda: (
            log.stat().st_blocks * 512 < job_agent.LOG_HEAD_BYTES + job_agent.LOG_END_BYTES * 1.2
        )
    )
    offset, output = 0, b""
    while (piece := job.tail(offset, 4 << 20)).data:
        output, offset = output + piece.data, piece.offset

    assert (size, size) == (job.status().log_bytes, offset)
    first, note, rest = output.partition(b"\n[... ")
    dropped = int(rest.split()[0])
    assert (len(first), first.count(b"\0")) == (job_agent.LOG_HEAD_BYTES, 0)
    kept = rest.partition(b" ...]\n")[2]
    assert (note != b"", len(kept), kept[-5:]) == (True, size - dropped - len(first), b"last\n")
    assert kept.count(b"\0") == 0
    assert job_agent.LOG_END_BYTES <= len(kept) <= job_agent.LOG_END_BYTES * 1.2
    assert job.tail(-5).data == b"last\n"
