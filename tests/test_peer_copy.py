"""Folders go from one machine of a run to another by a key that can do nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.contract import openssh_keys
from support.local_cloud import LocalHarness
from support.peer_machines import Peers

from commands.runs.peer_copies import Copy, PeerCopies
from infra.local.provider import LocalSettings
from infra.provider import Vm
from remote import peer_copy
from remote.errors import CommandFailed, RemoteError, Untrusted
from remote.peer_copy import Peer, copy_folders
from remote.ssh import Host, SshConnection, connect

BASE = "qft/contract-a"


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Two machines of a run; the second has a base and rows."""
    cloud = LocalHarness(tmp_path / "local", LocalSettings(notice_s=0))
    made = Peers(cloud)
    (made.homes[1] / BASE / "model").mkdir(parents=True)
    (made.homes[1] / BASE / "model" / "weights").write_bytes(os.urandom(3 << 20))
    (made.homes[1] / BASE / "data").mkdir()
    (made.homes[1] / BASE / "data" / "train.jsonl").write_text('{"text": "a row"}\n')
    (made.homes[1] / BASE / "run").mkdir()
    (made.homes[1] / BASE / "run" / "config.json").write_text("{}")
    yield made
    cloud.close()


def opened(peers: Peers, at: int) -> SshConnection:
    """A connection from home to one of the two machines."""
    vm = peers.machines[at]
    host = Host(
        address=vm.host,
        port=vm.port,
        user=vm.user,
        key_path=peers.folder / "owner",
        host_key=vm.host_public_key,
    )
    return connect(host, timeout_s=60)


def copy(peers: Peers, *, host_key: str = "", own_address: str = "") -> None:
    """Copy base and rows from the second machine to the first."""
    target, source = peers.machines
    peer = Peer(
        address=source.private_host,
        port=source.port,
        user=source.user,
        host_key=host_key or source.host_public_key,
    )
    with opened(peers, 0) as to, opened(peers, 1) as of:
        copy_folders(
            of,
            to,
            peer=peer,
            own_address=own_address or target.private_host,
            base=BASE,
            folders=("data", "model"),
            lock=threading.Lock(),
        )


def test_the_folders_arrive_whole_and_nothing_else_does(peers: Peers) -> None:
    """Base and rows are there with their bytes; the run's own folder was not named."""
    copy(peers)

    here, there = peers.homes[0] / BASE, peers.homes[1] / BASE
    for name in ("model/weights", "data/train.jsonl"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert not (here / "run").exists()


def test_no_key_is_left_on_either_machine(peers: Peers) -> None:
    """The source admits nobody more than before, whose line stays; the target holds no key."""
    mine = openssh_keys()[1]
    file = peers.homes[1] / ".ssh" / "authorized_keys"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_text(f"{mine}\n")
    file.chmod(0o600)

    copy(peers)

    assert file.read_text() == f"{mine}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    left = [path for path in peers.homes[0].rglob("key") if path.is_file()]
    assert left == []


def test_a_line_without_an_end_stays_a_line(peers: Peers) -> None:
    """A list of keys that lacks its last newline loses none, and admits the copy."""
    mine = openssh_keys()[1]
    file = peers.homes[1] / ".ssh" / "authorized_keys"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_text(mine)
    file.chmod(0o600)

    copy(peers)

    assert file.read_text() == f"{mine}\n"
    assert (peers.homes[0] / BASE / "model" / "weights").exists()


def test_a_symlink_is_not_taken_over(peers: Peers, tmp_path: Path) -> None:
    """A folder with a link, or a link in its place, never gets into the run's folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("mine")
    (peers.homes[1] / BASE / "data" / "link").symlink_to(outside)

    with pytest.raises(CommandFailed):
        copy(peers)

    assert not (peers.homes[0] / BASE / "data").exists()
    assert not (peers.homes[0] / BASE / "model").exists()
    assert [path.name for path in outside.iterdir()] == ["keep"]
    assert list((peers.homes[0] / BASE).glob(".copy-*")) == []


def test_what_is_there_is_not_copied_again(peers: Peers) -> None:
    """Folders that an earlier preparation left stay as they are, for the push to compare."""
    copy(peers)
    there = peers.homes[0] / BASE / "model" / "weights"
    there.write_bytes(b"half of it")

    copy(peers)

    assert there.read_bytes() == b"half of it"


def test_a_source_with_another_host_key_is_not_copied_from(peers: Peers) -> None:
    """Nothing arrives from a machine that presents a key other than the pinned one."""
    with pytest.raises(CommandFailed):
        copy(peers, host_key=openssh_keys()[1])

    assert not (peers.homes[0] / BASE / "model").exists()
    assert (peers.homes[1] / ".ssh" / "authorized_keys").read_text() == ""


def test_the_key_is_accepted_from_one_address_only(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the key elsewhere is refused: the source names the target's address."""
    line = peer_copy.ADD.replace('"$1" >>', '"$(printf %s "$1" | sed s/127[.]/126./)" >>')
    monkeypatch.setattr(peer_copy, "ADD", line)

    with pytest.raises(CommandFailed):
        copy(peers)


def test_what_is_no_address_never_reaches_a_command(peers: Peers) -> None:
    """A cloud's answer that is no address is refused before a key is made."""
    with pytest.raises(Untrusted):
        copy(peers, own_address='1.2.3.4",command="sh')

    assert not (peers.homes[1] / ".ssh" / "authorized_keys").exists()


def machine(node: int) -> Vm:
    """A machine by its number alone."""
    return Vm(provider="local", run_id="r", id=f"r.{node}", region="a", size="s", node=node)


def test_the_second_machine_waits_for_the_first_and_copies_from_it() -> None:
    """Two that begin together are not both sent the files from home."""
    copies = PeerCopies()
    begun, finish = threading.Event(), threading.Event()
    peers_found: list[Vm | None] = []
    messages: list[str] = []

    def first() -> None:
        with copies.turn(machine(0), messages.append) as peer:
            peers_found.append(peer)
            begun.set()
            finish.wait(60)

    def second() -> None:
        with copies.turn(machine(1), messages.append) as peer:
            peers_found.append(peer)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    ends_s = time.monotonic() + 60
    while not messages:
        assert time.monotonic() < ends_s
        time.sleep(0.01)
    finish.set()
    for thread in threads:
        thread.join(60)

    assert peers_found == [None, machine(0)]
    assert messages == ["waits until node 0 has the files, to copy them from it"]


def test_a_machine_that_was_not_sent_everything_is_not_copied_from() -> None:
    """When sending to the first fails, the next one is sent the files from home."""
    copies = PeerCopies()

    def fail() -> None:
        with copies.turn(machine(0), print):
            raise RemoteError("it was taken away")

    with pytest.raises(RemoteError):
        fail()

    with copies.turn(machine(1), print) as peer:
        assert peer is None


def test_after_a_copy_that_failed_one_machine_is_sent_the_files_and_the_others_wait() -> None:
    """A source that cannot be reached is not used again, and home still sends once at a time."""
    copies = PeerCopies()
    messages: list[str] = []
    waiting: list[str] = []
    found: list[Vm | None] = []

    def refuse(_vm: Vm) -> SshConnection:
        raise RemoteError("no route")

    with copies.turn(machine(0), messages.append):
        pass
    unused: Any = None
    with copies.turn(machine(1), messages.append) as peer:
        assert peer == machine(0)
        copies.copy(
            Copy(peer=peer, vm=machine(1), base=BASE, folders=("data",)),
            refuse,
            unused,
            messages.append,
        )

        def third() -> None:
            with copies.turn(machine(2), waiting.append) as other:
                found.append(other)

        thread = threading.Thread(target=third)
        thread.start()
        ends_s = time.monotonic() + 60
        while not waiting:
            assert time.monotonic() < ends_s
            time.sleep(0.01)
    thread.join(60)

    assert messages[-1] == "not copied from node 0, so it is sent from home: no route"
    assert found == [machine(1)]
