"""Lets the machines of a run get its large files from each other, so that home sends them once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from infra.provider import Vm
from remote.errors import RemoteError
from remote.peer_copy import Peer, copy_folders
from remote.ssh import SshConnection

LOOK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What is copied, from which machine to which."""

    peer: Vm
    vm: Vm
    base: str
    """The run's folder, the same on both."""
    folders: Sequence[str]


class PeerCopies:
    """Knows which machines of a run have what home sends, and whose turn it is to be sent it."""

    def __init__(self) -> None:
        self._key_lock = threading.Lock()
        """Held while a machine's list of keys changes."""
        self._changed = threading.Condition()
        self._have: dict[int, Vm] = {}
        self._sent_to: int | None = None

    @contextmanager
    def turn(self, vm: Vm, on_message: Callable[[str], None]) -> Iterator[Vm | None]:
        """Give a machine that has everything, None to the first, while the others wait for it.

        What happens within is the sending; if it ends well the machine has everything, too.
        """
        with self._changed:
            if self._sent_to is not None and not self._have:
                on_message(f"waits until node {self._sent_to} has the files, to copy them from it")
            while self._sent_to is not None and not self._have:
                self._changed.wait(LOOK_S)
            peer = next((one for node, one in self._have.items() if node != vm.node), None)
            if peer is None:
                self._sent_to = vm.node
        try:
            yield peer
            with self._changed:
                self._have[vm.node] = vm
        finally:
            with self._changed:
                if self._sent_to == vm.node:
                    self._sent_to = None
                self._changed.notify_all()

    def copy(
        self,
        copy: Copy,
        connect: Callable[[Vm], SshConnection],
        target: SshConnection,
        on_message: Callable[[str], None],
    ) -> None:
        """Copy from another machine; one that cannot be copied from is said, and not used again."""
        peer = copy.peer
        on_message(f"copying {' and '.join(copy.folders)} from node {peer.node}")
        try:
            with connect(peer) as source:
                copy_folders(
                    source,
                    target,
                    peer=Peer(
                        address=peer.private_host,
                        port=peer.port,
                        user=peer.user,
                        host_key=source.host.host_key,
                    ),
                    own_address=copy.vm.private_host,
                    base=copy.base,
                    folders=copy.folders,
                    lock=self._key_lock,
                )
        except RemoteError as error:
            on_message(f"not copied from node {peer.node}, so it is sent from home: {error}")
            with self._changed:
                self._have.pop(peer.node, None)
                if self._sent_to is None:  # the others wait, and copy from this one then
                    self._sent_to = copy.vm.node
