"""Set-up brings a machine from bare to ready over real SSH, across reboots, and then leaves it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import sshd

from remote.errors import CommandFailed, TimedOut, Unfit, Unreachable
from remote.job import Job, JobState, JobStatus
from remote.setup import apply as setup
from remote.setup.facts import Facts, gather_facts
from remote.setup.steps import UPGRADERS, DriverKind, SetupGoal, Step
from remote.ssh import Host, SshConnection, connect

WANT = SetupGoal(driver=DriverKind.DATACENTER)

# A machine's commands, played by shell scripts over the files in ~/state. Everything is written
# down in ~/state/log, in the order in which it happens.
COMMANDS = {
    "lspci": "echo '0001:00:00.0 0302: 10de:1eb8 (rev a1)'",
    "nvidia-smi": """
if [ -f ~/state/driver ]; then echo "Tesla T4, $(cat ~/state/driver), 15360, 7.5"; exit 0; fi
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver"; exit 9""",
    "apt-get": 'echo "apt-get $*" >> ~/state/log',
    "apt-mark": 'if [ "$1" != showhold ]; then echo "apt-mark $*" >> ~/state/log; fi',
    "dpkg-query": "exit 1",
    "ubuntu-drivers": 'echo "ubuntu-drivers $*" >> ~/state/log; cp ~/state/next ~/state/pending',
    "systemctl": """
echo "systemctl $*" >> ~/state/log
case "$1" in
  reboot) [ ! -f ~/state/pending ] || mv ~/state/pending ~/state/driver
          echo "boot-$(wc -l < ~/state/log)" > ~/state/boot ;;
  is-active) if [ -f ~/state/quiet ]; then echo inactive; exit 3; fi; echo active ;;
  disable) touch ~/state/quiet ;;
esac""",
    "cloud-init": 'if [ "$2" = --wait ]; then rm -f ~/state/booting; fi\n'
    "if [ -f ~/state/booting ]; then echo status: running; else echo status: done; fi",
    "cat": """
case "$1" in */boot_id) exec /bin/cat ~/state/boot ;; esac
exec /bin/cat "$@" """,
    "dmesg": "echo '[1.0] NVRM: Xid (PCI:0001:00:00): 79, GPU has fallen off'",
    "python3.14": """
case "$*" in
  *version_info*) echo 3.14 yes ;;
  "-m venv --clear "*)
    mkdir -p "$4/bin"
    printf '#!/bin/sh\\necho "${0##*/} $1 $2" >> ~/state/log\\n[ ! -f ~/state/broken ]\\n' \
      > "$4/bin/python"
    chmod +x "$4/bin/python" ;;
esac""",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    """An Ubuntu machine with a card and no driver that has just booted for the first time."""
    with sshd.serve(tmp_path) as running:
        commands, state = running.home / "bin", running.home / "state"
        commands.mkdir()
        state.mkdir()
        for name, body in COMMANDS.items():
            (commands / name).write_text(f"#!/bin/sh\n{body}\n")
            (commands / name).chmod(0o755)
        (state / "boot").write_text("boot-0\n")
        (state / "next").write_text("580.173.02\n")
        (state / "booting").touch()
        (state / "log").touch()
        yield running


@pytest.fixture
def ubuntu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever system the test runs on pass for Ubuntu."""

    def gather_as_ubuntu(connection: SshConnection) -> Facts:
        from dataclasses import replace

        return replace(gather_facts(connection), os="ubuntu 24.04", free_bytes=10**12)

    monkeypatch.setattr(setup, "gather_facts", gather_as_ubuntu)


def apply(
    server: sshd.Sshd, goal: SetupGoal = WANT, messages: list[str] | None = None
) -> setup.ReadyMachine:
    """Set the machine up, without waiting between looks."""
    received = messages if messages is not None else []
    return setup.apply(connect(server.host()), goal, on_message=received.append, sleep=nap)


@pytest.mark.usefixtures("ubuntu")
def test_bare_machine_becomes_ready(server: sshd.Sshd) -> None:
    """Driver, reboot, environment and last word happen in order; a second pass does nothing."""
    messages: list[str] = []
    ready = apply(server, messages=messages)
    names = [step.name for step in ready.done]
    log = (server.home / "state" / "log").read_text().splitlines()
    again = apply(server)

    assert names == [
        "wait for the first boot to finish",
        "stop automatic upgrades",
        "install the NVIDIA driver",
        "make the Python environment",
        "put a tensor on the GPU",
    ]
    assert [line.split(" (")[0] for line in messages] == [*names[:3], "reboot", *names[3:]]
    assert [line for line in log if "is-active" not in line] == [
        f"systemctl disable --now {UPGRADERS}",
        "apt-get -o DPkg::Lock::Timeout=600 -y update",
        f"apt-get -o DPkg::Lock::Timeout=600 -y install ubuntu-drivers-common {headers()}",
        "ubuntu-drivers install",
        "systemctl reboot",
        "python -m pip",
        "python -c import torch; torch.zeros(1).cuda()",
    ]
    assert again.done == ()
    assert again.python == ready.python
    assert (server.home / ready.python).exists()
    for connection in (ready.connection, again.connection):
        connection.close()


@pytest.mark.usefixtures("ubuntu")
def test_driver_that_does_not_help(server: sshd.Sshd) -> None:
    """A step that changes nothing is not repeated for ever: the machine is refused."""
    (server.home / "bin" / "ubuntu-drivers").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(Unfit, match="after `install the NVIDIA driver` it is still needed"):
        apply(server)


@pytest.mark.usefixtures("ubuntu")
def test_failing_step_shows_its_log(server: sshd.Sshd) -> None:
    """A step that fails shows the end of its log and explains what the card says."""
    (server.home / "state" / "driver").write_text("580.173.02\n")
    (server.home / "state" / "broken").touch()
    with pytest.raises(CommandFailed, match="make the Python environment") as caught:
        apply(server)

    assert "Xid 79: the card has fallen off the bus" in caught.value.hint


@pytest.mark.usefixtures("ubuntu")
def test_machine_that_does_not_come_back(server: sshd.Sshd) -> None:
    """A machine that is silent after its reboot is `Unreachable` once the budget is spent."""
    now = iter(range(0, 10**6, 60))

    def nobody(host: Host) -> SshConnection:
        raise Unreachable(f"{host} is silent")

    with (
        connect(server.host()) as connection,
        pytest.raises(Unreachable, match="did not come back"),
    ):
        setup.apply(
            connection,
            WANT,
            on_message=lambda _: None,
            reconnect=nobody,
            sleep=nap,
            clock=lambda: next(now),
        )


@pytest.mark.usefixtures("ubuntu")
def test_line_cut_during_a_step(server: sshd.Sshd) -> None:
    """A step goes on while the line is cut, and is followed again rather than started twice."""
    (server.home / "bin" / "ubuntu-drivers").write_text(
        "#!/bin/sh\necho once >> ~/state/installs\n"
        "until [ -e ~/state/cut ]; do sleep 0.1; done\ncp ~/state/next ~/state/driver\n"
    )
    connection = connect(server.host())

    def come_back(host: Host) -> SshConnection:
        (server.home / "state" / "cut").touch()
        return connect(host)

    with sshd.cut_when_exists(server.home / "state" / "installs", connection.transport):
        ready = setup.apply(
            connection, WANT, on_message=lambda _: None, reconnect=come_back, sleep=nap
        )
    ready.connection.close()

    assert ready.connection is not connection
    assert (server.home / "state" / "installs").read_text() == "once\n"


@pytest.mark.usefixtures("ubuntu")
def test_line_cut_before_a_start_is_answered(
    server: sshd.Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose start nobody heard of, and that is over by now, is not started once more."""
    (server.home / "bin" / "ubuntu-drivers").write_text(
        "#!/bin/sh\necho once >> ~/state/installs\ncp ~/state/next ~/state/driver\n"
    )
    begin, cut = Job.start, iter([True])

    def start_and_cut(job: Job, argv: Sequence[str], **how: Any) -> JobStatus:
        status = begin(job, argv, **how)
        if "ubuntu-drivers install" in argv[-1] and next(cut, False):
            while job.status().state is JobState.RUNNING:
                time.sleep(0.05)
            job.connection.transport.close()
            raise Unreachable("the line was cut")
        return status

    monkeypatch.setattr(Job, "start", start_and_cut)

    apply(server).connection.close()

    assert (server.home / "state" / "installs").read_text() == "once\n"


def test_step_that_takes_too_long(server: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that exceeds its time is stopped and reported."""
    slow = Step(name="dream", command="sleep 60", why="it is late", timeout_s=1)
    monkeypatch.setattr(setup, "plan_steps", lambda *_: [slow])
    with pytest.raises(TimedOut, match="took too long"):
        apply(server)

    with connect(server.host()) as connection:
        assert Job(connection=connection, directory=setup.DIRECTORY).status().state == "exited"


def test_given_interpreter_needs_nothing(server: sshd.Sshd) -> None:
    """With an interpreter of the caller's and no GPU nothing is done at all."""
    ready = apply(server, SetupGoal(python="/usr/bin/python3"))
    ready.connection.close()

    assert (ready.python, ready.done) == ("/usr/bin/python3", ())
    assert not (server.home / "qft").exists()


def nap(wait_s: float) -> None:
    """Wait much less than asked."""
    time.sleep(min(wait_s, 0.1))


def headers() -> str:
    """Name the package that goes with the running kernel."""
    import platform

    return f"linux-headers-{platform.release()}"
