"""A machine of a run enters another one over their private network, as its home allows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.contract import openssh_keys
from support.local_cloud import LocalHarness
from support.peer_machines import Peers

from infra.local.provider import LocalSettings


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Two machines of a run."""
    cloud = LocalHarness(tmp_path / "local", LocalSettings(notice_s=0))
    yield Peers(cloud)
    cloud.close()


def test_a_machine_enters_another_by_a_key_of_its_home(peers: Peers) -> None:
    """OpenSSH's client on the first machine runs a command on the second, whose key is pinned."""
    peers.authorize("")

    code, out, error = peers.run(peers.ssh("pwd; cat; exit 7"), stdin="rows\n")

    assert (code, out) == (7, f"{peers.homes[1]}\nrows\n"), error


def test_a_machine_without_that_line_is_refused(peers: Peers) -> None:
    """Sharing a network and a user does not let one machine into another."""
    code, _, error = peers.run(peers.ssh("true"))

    assert code == 255
    assert "Permission denied" in error


def test_a_line_that_is_taken_out_admits_nobody_any_more(peers: Peers) -> None:
    """The file is read for each connection, not once."""
    peers.authorize("")
    before = peers.run(peers.ssh("true"))[0]
    (peers.homes[1] / ".ssh" / "authorized_keys").write_text("")

    assert (before, peers.run(peers.ssh("true"))[0]) == (0, 255)


def test_another_host_key_is_not_entered(peers: Peers) -> None:
    """The private address presents the machine's own key: a client that pins another stays out."""
    peers.authorize("")
    other = peers.machines[1]
    wrong = openssh_keys()[1]
    (peers.homes[0] / "known").write_text(f"[{other.private_host}]:{other.port} {wrong}\n")

    code, _, error = peers.run(peers.ssh("true"))

    assert code == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in error


@pytest.mark.parametrize("requested", ["rm -r .", ""])
def test_a_forced_command_is_all_that_its_key_can_do(peers: Peers, requested: str) -> None:
    """It runs in place of what was asked for, which it finds in SSH_ORIGINAL_COMMAND."""
    printing = r'command="printf \"%s|\\n\" \"forced ${SSH_ORIGINAL_COMMAND-nothing}\""'
    peers.authorize(f"restrict,{printing}")

    code, out, error = peers.run(peers.ssh(*filter(None, [requested])))

    assert (code, out) == (0, f"forced {requested or 'nothing'}|\n"), error
    assert peers.homes[1].exists()


def test_a_forced_command_admits_no_sftp(peers: Peers) -> None:
    """A key with a command of its own reads no file by SFTP, and an unrestricted one does."""
    (peers.homes[1] / "rows").write_text("the rows")
    peers.authorize('command="true"')
    fetch = peers.ssh(program="sftp")
    fetch[-1] += ":rows"

    forced = peers.run([*fetch, "forced"])
    peers.authorize("restrict")
    plain = peers.run([*fetch, "plain"])

    assert (forced[0] != 0, (peers.homes[0] / "forced").exists()) == (True, False)
    assert plain[0] == 0, plain
    assert (peers.homes[0] / "plain").read_text() == "the rows"


def test_a_key_is_bound_to_the_address_of_one_machine(peers: Peers) -> None:
    """With `from`, the same key is refused when it comes from any other address."""
    peers.authorize(f'restrict,from="{peers.machines[0].private_host}"')

    assert peers.run(peers.ssh("true"))[0] == 0
    assert peers.run(peers.ssh("true", source=False))[0] == 255


def test_restrict_takes_terminals_and_forwarding(peers: Peers) -> None:
    """Neither a terminal nor a forwarded port comes with a restricted key; `pty` gives one back."""
    terminal = peers.ssh("-tt", "test -t 0 && echo terminal")
    found = {}
    for options in ("restrict", "restrict,pty", "no-PTY", "port-forwarding"):
        peers.authorize(options)
        _, out, error = peers.run(terminal)
        found[options] = out.strip() or error.strip()

    refused = "PTY allocation request failed on channel 0"
    assert found == {
        "restrict": refused,
        "restrict,pty": "terminal",
        "no-PTY": refused,
        "port-forwarding": "terminal",
    }
    peers.authorize("restrict")
    through = peers.ssh("-W", f"127.0.0.1:{peers.machines[1].port}")
    code, out, error = peers.run(through)
    assert (code, out) == (255, ""), error
    assert "prohibited" in error


@pytest.mark.parametrize(
    "options",
    [
        'expiry-time="20990101"',
        'command=""',
        'command="true',
        "cert-authority",
        "no-such-option",
        'restrict,from="10.0.0.0/8"',
    ],
)
def test_a_line_that_is_not_understood_admits_nobody(peers: Peers, options: str) -> None:
    """What a server cannot honour, it does not read as permission; other lines still hold."""
    peers.authorize(options)
    alone = peers.run(peers.ssh("true"))[0]
    file = peers.homes[1] / ".ssh" / "authorized_keys"
    file.write_text(f"{file.read_text()}restrict {peers.public}")

    assert (alone, peers.run(peers.ssh("true"))[0]) == (255, 0)


def test_a_file_that_others_can_write_is_not_believed(peers: Peers) -> None:
    """As OpenSSH's server with StrictModes, which is its default."""
    peers.authorize("", mode=0o666)

    assert peers.run(peers.ssh("true"))[0] == 255


def test_the_owner_cannot_be_locked_out(peers: Peers) -> None:
    """The key that the machine was made with is unrestricted, whatever its home says of it."""
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", peers.folder / "owner"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    file = peers.homes[0] / ".ssh" / "authorized_keys"
    file.parent.mkdir(mode=0o700)
    file.write_text(f'command="echo forced" {public}')
    file.chmod(0o600)

    assert peers.run(["echo", "free"])[1] == "free\n"


def test_a_key_file_that_is_no_file_locks_nobody_out(peers: Peers) -> None:
    """A named pipe in its place is not waited for."""
    folder = peers.homes[0] / ".ssh"
    folder.mkdir(mode=0o700)
    subprocess.run(["mkfifo", "-m", "600", folder / "authorized_keys"], check=True)

    assert peers.run(["echo", "in"])[1] == "in\n"
