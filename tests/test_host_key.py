"""The host key that others can read is replaced over the first connection, whatever is cut."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import sshd

from commands.runs.power_watch import PowerWatch
from commands.runs.workload import SshWorkload
from infra.provider import Vm
from infra.run.fold import apply, fold
from infra.run.host_key import change_host_key
from infra.run.journal import Event, Journal, Kind
from infra.run.state import RunState
from remote import keys
from remote.errors import CommandFailed, Garbled, HostKeyMismatch, RemoteError, Untrusted
from remote.host_key import make_host_key, use_host_key
from remote.ssh import SshConnection, connect


class Killed(BaseException):
    """This computer dies here."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    """A machine whose account may replace the key of its server."""
    with sshd.serve(tmp_path / "machine") as running:
        folder = running.home.parent
        wrapper = folder / "enter"
        head, _, rest = wrapper.read_text().partition("\n")
        wrapper.write_text(f"{head}\nexport QFT_SSH_HOST_KEY={folder / 'host'}\n{rest}")
        (running.home / "bin").mkdir()
        yield running


@pytest.fixture
def connection(server: sshd.Sshd) -> Iterator[SshConnection]:
    """The first connection, its key pinned."""
    with connect(server.host(), timeout_s=sshd.TIMEOUT_S) as opened:
        yield opened


def presents(server: sshd.Sshd, line: str) -> bool:
    """Whether the server presents that key, and so is connected to."""
    try:
        connect(server.host(host_key=line), timeout_s=sshd.TIMEOUT_S).close()
    except HostKeyMismatch:
        return False
    return True


def play(server: sshd.Sshd, name: str, text: str) -> None:
    """Put a program in the place of one of the machine's."""
    program = server.home / "bin" / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_new_key_is_made_there_and_is_the_only_one_accepted(
    server: sshd.Sshd, connection: SshConnection
) -> None:
    """The server presents it without a restart, and its private half never leaves the machine."""
    line = make_host_key(connection)
    assert presents(server, server.host_key)
    after = use_host_key(connection, line)

    assert after.host.host_key == line
    assert after.run("echo well").stdout == "well\n"
    after.close()
    assert presents(server, line)
    assert not presents(server, server.host_key)
    assert server.process.poll() is None
    assert "SIGHUP" in (server.home.parent / "sshd.log").read_text()  # newer ones need it
    host = server.home.parent / "host"
    assert keys.public_line(host).startswith(line)
    assert keys.plain_line(host.with_name("host.pub").read_text()) == line
    assert stat.S_IMODE(host.stat().st_mode) == 0o600
    assert {path.name for path in host.parent.glob("host*")} == {"host", "host.pub"}


def test_change_that_is_repeated_makes_no_second_key(
    server: sshd.Sshd, connection: SshConnection
) -> None:
    """A key that was made and not used is the one that is used; one in use stays."""
    line = make_host_key(connection)

    assert make_host_key(connection) == line
    assert make_host_key(connection, expected=line) == line
    use_host_key(connection, line).close()
    use_host_key(connection, line).close()
    assert make_host_key(connection, expected=line) == line
    assert presents(server, line)


def test_half_of_a_key_is_made_anew(server: sshd.Sshd, connection: SshConnection) -> None:
    """A file that a dying machine tore is no key."""
    torn = server.home.parent / "host.next"
    torn.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb")
    torn.with_name("host.next.new").write_text("")
    line = make_host_key(connection)
    use_host_key(connection, line).close()

    assert presents(server, line)


def test_key_that_was_not_made_is_not_used(server: sshd.Sshd, connection: SshConnection) -> None:
    """Only the key that was written down here is put into use."""
    make_host_key(connection)
    with pytest.raises(CommandFailed, match="not the key that was made"):
        use_host_key(connection, keys.pair()[1])

    assert presents(server, server.host_key)


def test_both_keys_are_accepted_while_one_replaces_the_other(server: sshd.Sshd) -> None:
    """A connection names the key that was presented; a third one is refused."""
    other = keys.plain_line(keys.pair()[1])
    first = keys.plain_line(server.host_key)
    for given, following in ((first, other), (other, first)):
        host = server.host(host_key=given, next_host_key=following)
        with connect(host, timeout_s=sshd.TIMEOUT_S) as opened:
            assert (opened.host.host_key, opened.host.next_host_key) == (first, "")
    with pytest.raises(HostKeyMismatch):
        connect(server.host(host_key=other, next_host_key=keys.pair()[1]))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("echo nonsense", Garbled),
        ("echo", Garbled),
        ("head -c 100000 /dev/zero | tr '\\0' x", Untrusted),
        ("echo ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAAJ4", Untrusted),
        ("echo {line}", Untrusted),
        ("printf '%s\\n%s\\n' {line} {line}", Untrusted),
        ("exit 1", CommandFailed),
    ],
)
def test_answer_that_is_no_new_key_is_refused(
    server: sshd.Sshd, connection: SshConnection, answer: str, error: type[RemoteError]
) -> None:
    """What the machine prints becomes a pinned key only if it is a new one."""
    play(server, "ssh-keygen", answer.replace("{line}", f"'{server.host_key}'"))
    with pytest.raises(error):
        make_host_key(connection)

    assert presents(server, server.host_key)


def test_server_that_goes_on_with_its_old_key_is_an_error(
    server: sshd.Sshd, connection: SshConnection
) -> None:
    """After half a minute; a third key is refused at once."""
    now = [0.0]

    def refuse(got: str) -> Callable[..., SshConnection]:
        def reconnect(_host: object) -> SshConnection:
            raise HostKeyMismatch("another", expected="SHA256:x", got=got)

        return reconnect

    def sleep(seconds: float) -> None:
        now[0] += seconds

    line = make_host_key(connection)
    time = {"sleep": sleep, "clock": lambda: now[0]}
    old = refuse(keys.fingerprint(server.host_key))
    with pytest.raises(RemoteError, match="does not take a new key"):
        use_host_key(connection, line, reconnect=old, **time)  # type: ignore[arg-type]
    assert now[0] == 30.0
    with pytest.raises(HostKeyMismatch):
        use_host_key(connection, line, reconnect=refuse("SHA256:y"), **time)  # type: ignore[arg-type]
    assert now[0] == 30.0


# ---- with the record at home ----


def workload(server: sshd.Sshd) -> SshWorkload:
    """As much of a workload as it takes to change the key."""
    config = SimpleNamespace(
        on_message=lambda _text: None,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        brings_home=False,
        layout=SimpleNamespace(run_dir="r"),
        key_path=server.client_key,
        home=Path("/nowhere"),
        power_watch=PowerWatch(lambda _vm: ""),
    )
    return SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used


class Home:
    """A computer with the record of a run; it dies at one of the moments that are counted."""

    def __init__(self, path: Path, server: sshd.Sshd, kill_at: int = 0) -> None:
        self.journal = Journal(path, clock=lambda: 5.0)
        if not self.journal.events:
            self.journal.append(Kind.CREATE_ACCEPTED, vm=vars(machine(server)))
        self.state: RunState = fold(self.journal.events)
        self.moments, self.kill_at = 0, kill_at
        self.work = workload(server)
        for name in ("make_host_key", "use_host_key"):
            setattr(self.work, name, self.mortal(getattr(self.work, name)))

    def mortal(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same act, with a moment before and after it."""

        def wrapped(*arguments: Any) -> Any:
            self.moment()
            result = act(*arguments)
            self.moment()
            return result

        return wrapped

    def moment(self) -> None:
        """Die now, if this is the moment."""
        self.moments += 1
        if self.moments == self.kill_at:
            raise Killed

    def record(self, kind: Kind, **data: Any) -> Event:
        """Write an event of the run."""
        self.moment()
        event = self.journal.append(kind, **data)
        self.state = apply(self.state, event)
        self.moment()
        return event

    def vm(self) -> Vm:
        """The machine as it is recorded."""
        assert self.state.vm is not None
        return self.state.vm

    def change(self) -> str:
        """Change its host key, or go on with a change."""
        try:
            return change_host_key(self.work, self.vm, self.record)
        finally:
            self.work.disconnect()


def machine(server: sshd.Sshd) -> Vm:
    """The machine as its provider made it."""
    return Vm(
        provider="aws",
        run_id="r",
        id="x",
        region="a",
        size="s",
        host="127.0.0.1",
        port=server.port,
        user=server.user,
        host_public_key=server.host_key,
        host_key_is_readable=True,
    )


def test_killed_at_every_moment_the_machine_stays_reachable(
    tmp_path: Path, server: sshd.Sshd
) -> None:
    """The same command again ends with a new key, the only one that is accepted from then on."""
    first = server.host_key
    calm = Home(tmp_path / "calm.jsonl", server)
    assert calm.change() == ""
    moments, server = calm.moments, replace(server, host_key=calm.vm().host_public_key)
    assert moments == 8
    for kill_at in range(1, moments + 1):
        path = tmp_path / f"{kill_at}.jsonl"
        with pytest.raises(Killed):
            Home(path, server, kill_at).change()
        again = Home(path, server)
        if again.vm().host_key_is_readable:
            assert again.change() == ""
        vm = Home(path, server).vm()
        assert not vm.host_key_is_readable, kill_at
        assert vm.accepted_host_keys == [vm.host_public_key], kill_at
        assert vm.host_public_key not in {first, server.host_key}, kill_at
        assert presents(server, vm.host_public_key), kill_at
        server = replace(server, host_key=vm.host_public_key)


def test_key_that_cannot_be_changed_stays_and_is_reported(
    tmp_path: Path, server: sshd.Sshd
) -> None:
    """The run goes on with the key that it has, and the next boot tries again."""
    play(server, "ssh-keygen", "echo no such program >&2; exit 127")
    home = Home(tmp_path / "journal.jsonl", server)

    assert home.change().startswith("the host key of the first boot stays in use: ")
    assert home.state.host_key_kept
    assert home.vm().host_key_is_readable
    assert home.vm().accepted_host_keys == [server.host_key]
    home.record(Kind.START_ACCEPTED)
    assert not home.state.host_key_kept
