"""Joins this process to the others of one training, over torch.distributed.

Processes on CPUs talk by gloo. On cards gradients go by NCCL and everything else by gloo; no card
has shown that yet. Nothing of it has authentication, so all of it stays on the interface that the
store's address belongs to.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainer.errors import PeerLost, Preempted
from trainer.eviction import OF_PEER, PreemptionFlag
from trainer.group.exchange import Buffers, Channel, JoinedSum, buffer_key, make_buffers
from trainer.group.machines import Machine, machine_key, names_of
from trainer.group.waiting import (
    BEAT_S,
    LOST,
    NOTICE,
    PRESENT,
    SILENT_S,
    STUCK_S,
    Waiter,
    Watch,
    beat_key,
    left_key,
)
from trainer.group.words import StepWord, read_step_word, require_same

JOIN_S = 300.0
"""Within which all ranks must have come; importing the libraries takes long on a busy machine."""
NET_S = 6 * 3600.0
"""After which an operation fails by itself. Ranks notice all that can happen to others long
before; one may have work of its own for so long."""
POLL_S = 0.02
GROUP = "rdzv_id"
"""The key under which the store has whose it is."""


class Joined:
    """One rank of several; see `Peers` for what is promised."""

    lockstep = False

    def __init__(self, channel: Channel, watch: Watch, *, local_rank: int, local_size: int) -> None:
        self.rank = channel.rank
        self.local_rank = local_rank
        self.local_size = local_size
        self.size = channel.size
        self.channel = channel
        self._watch = watch
        self._buffers: Buffers | None = None

    def mine(self, count: int) -> range:
        """Return every size-th piece, from the one that has this rank's number."""
        return range(self.rank, count, self.size)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank, as JSON brings them over."""
        own = json.dumps(value).encode()
        lengths = self._gather_ints([len(own)])
        padded = torch.zeros(max(max(lengths)), dtype=torch.uint8)
        padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        work, found = self.channel.gather_tensor(padded, self.channel.host)
        self.channel.waiter.wait([work])
        return [
            json.loads(bytes(one[:length].numpy()))
            for one, (length,) in zip(found, lengths, strict=True)
        ]

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """Return the bytes that one rank gives."""
        length = self._gather_ints([len(data or b"")])[source][0]
        sent = torch.zeros(max(1, length), dtype=torch.uint8)
        if data:
            sent[:length] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        work = dist.broadcast(sent, src=source, group=self.channel.host, async_op=True)
        self.channel.waiter.wait([work])
        return sent[:length].numpy().tobytes()

    def compare(self, step: int, *, flag: PreemptionFlag, digest: Callable[[], int]) -> bool:
        """Compare the states of all ranks; raise the flag here if a notice came to any of them."""
        own = StepWord(step=step, digest=digest(), seconds_left=flag.seconds_left)
        words = [read_step_word(one) for one in self._gather_ints(own.to_ints())]
        require_same(words)
        left_s, rank = min((word.seconds_left, rank) for rank, word in enumerate(words))
        if left_s == float("inf"):
            return False
        if flag.notice is None:
            flag.set(seconds_left=left_s, reason=f"{OF_PEER} {rank}")
        return True

    def open_sum(self, tensors: Mapping[str, torch.Tensor], count: int) -> JoinedSum:
        """Begin a sum through the buffers of the step before, if they fit."""
        if self._buffers is None or self._buffers.key != buffer_key(tensors):
            self._buffers = None
            self._buffers = make_buffers(tensors, self.size)
        return JoinedSum(self.channel, self._buffers, tensors, count)

    def _gather_ints(self, values: list[int]) -> list[list[int]]:
        work, found = self.channel.gather_ints(values)
        self.channel.waiter.wait([work])
        return [one.tolist() for one in found]

    def close(self) -> None:
        """Leave together with all others; returns when each of them has come to its end."""
        self._gather_ints([self.rank])
        self._watch.close()
        if self.rank == 0:
            time.sleep(
                2 * BEAT_S
            )  # the others' last look at the store, which ends with this process
        dist.destroy_process_group()

    def abandon(self, reason: str) -> None:
        """Leave without the others, and say why; never waits for them.

        Operations with ranks that are gone never end, and gloo would wait for them when its group
        is destroyed. So the group is not: it goes with the process.
        """
        keep_forever(dist.group.WORLD)
        keep_forever(self.channel.host)
        self._watch.close(leaving=reason)
        if self.rank == 0:
            time.sleep(2 * BEAT_S)  # until the others have read the reason


@contextmanager
def join(  # noqa: PLR0913 - what a launcher hands to a rank
    *,
    rank: int,
    size: int,
    address: str,
    listen_fd: int | None,
    device: torch.device | str,
    flag: PreemptionFlag,
    on_message: Callable[[str], None],
    machine: Machine | None = None,
    silent_s: float = SILENT_S,
    stuck_s: float = STUCK_S,
    join_s: float = JOIN_S,
) -> Iterator[Joined]:
    """Be one of `size` ranks while inside; rank 0 hosts the store at `address` ("host:port").

    `listen_fd` is a socket that listens there already, made by the parent of all ranks; without it
    rank 0 makes one. With a `machine`, rank and size are those on it. A rank that leaves by an
    exception tells the others and waits for none.

    Raises:
        PeerLost: not all ranks have come in `join_s`, or one was lost.
        Preempted: a notice came while they were waited for.
    """
    meeting = _Meeting(
        rank=rank, size=size, address=address, listen_fd=listen_fd, machine=machine, join_s=join_s
    )
    meeting.start(torch.device(device))
    deadline_s = time.monotonic() + join_s
    while not meeting.is_completed():
        if flag.notice is not None:
            raise Preempted
        if time.monotonic() > deadline_s:
            raise PeerLost(meeting.late(join_s))
        time.sleep(POLL_S)
    beats = meeting.wait()
    local_rank, local_size = rank, size
    rank, size = meeting.rank, meeting.size
    watch = Watch(beats, rank=rank, size=size)
    watch.start()
    waiter = Waiter(watch, flag, silent_s=silent_s, stuck_s=stuck_s)
    channel = Channel(
        rank=rank, size=size, waiter=waiter, data=dist.group.WORLD, host=meeting.host_group
    )
    joined = Joined(channel, watch, local_rank=local_rank, local_size=local_size)
    on_message(f"card {rank} of {size} has joined")
    try:
        yield joined
        joined.close()
    except PeerLost as error:
        on_message(str(error))
        joined.abandon(f"{LOST}: it has lost another card")
        raise
    except Preempted:
        joined.abandon(f"{NOTICE}:{min(flag.seconds_left, NET_S):.1f}")
        raise
    except BaseException as error:
        joined.abandon(f"failed: {type(error).__name__}")
        raise


class _Meeting:
    """Finds the other ranks in a thread, so that this one can be told to leave meanwhile."""

    def __init__(  # noqa: PLR0913 - what a launcher hands to a rank
        self,
        *,
        rank: int,
        size: int,
        address: str,
        listen_fd: int | None,
        machine: Machine | None,
        join_s: float,
    ) -> None:
        self.rank = rank
        self.size = size
        self._machine = machine
        self._missing: list[int] = []
        host, _, port = address.rpartition(":")
        self._host = host
        self._port = int(port)
        self._listen_fd = listen_fd
        self._join_s = join_s
        self.host_group: Any = None
        self._beats: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    def late(self, join_s: float) -> str:
        """Return who has not come in time."""
        if self._missing and self._machine is not None:
            return (
                f"{names_of(self._missing)} of {self._machine.count} did not come to the store at "
                f"{self._machine.store} in {join_s:.0f} s; are they started, and can they reach it?"
            )
        return f"the {self.size} processes did not find each other in {join_s:.0f} s"

    def _number_ranks(self, store: Any, machine: Machine) -> None:
        """Wait for all machines, and number the ranks of this one after those before it."""
        if self.rank == 0:
            store.set(machine_key(machine.number), str(self.size))
        self._missing = [*range(machine.count)]
        while self._missing:
            self._missing = [one for one in self._missing if not store.check([machine_key(one)])]
            time.sleep(POLL_S)
        sizes = [int(store.get(machine_key(one))) for one in range(machine.count)]
        self.rank += sum(sizes[: machine.number])
        self.size = sum(sizes)

    def start(self, device: torch.device) -> None:
        """Begin."""
        threading.Thread(target=self._run, args=(device,), name="join", daemon=True).start()

    def is_completed(self) -> bool:
        """Tell whether all ranks are joined, or something went wrong."""
        return self._done.is_set()

    def wait(self) -> Any:
        """Return the store connection for heartbeats; raise what went wrong."""
        if isinstance(self._error, dist.DistError):
            text = " ".join(str(self._error).split())[:200]
            raise PeerLost(f"the other cards were not found: {text}") from self._error
        if self._error is not None:
            raise self._error
        return self._beats

    def _run(self, device: torch.device) -> None:
        try:
            self._meet(device)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            self._done.set()

    def _meet(self, device: torch.device) -> None:
        """Host the store or find it, await all ranks there, and connect with each."""
        machine = self._machine
        hosts = self.rank == 0 and (machine is None or machine.number == 0)
        store = self._of_group(self._connect(hosts=hosts), hosts=hosts)
        self._beats = self._of_group(self._connect(hosts=False), hosts=False)
        if machine is not None:
            self._number_ranks(store, machine)
        store.set(beat_key(self.rank), "0")
        store.set(left_key(self.rank), PRESENT)
        store.add("joined", 1)
        while store.add("joined", 0) < self.size:
            time.sleep(POLL_S)
        interface = interface_of(self._host if machine is None else machine.address)
        os.environ["GLOO_SOCKET_IFNAME"] = interface  # torch reads both from nowhere else
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"
        on_card = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_card else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=NET_S),
            device_id=device if on_card else None,
        )
        host = dist.new_group(backend="gloo", timeout=timedelta(seconds=NET_S)) if on_card else None
        self.host_group = host or dist.group.WORLD

    def _of_group(self, store: Any, *, hosts: bool) -> Any:
        """Return the store with the keys of this group alone; leave that of another one at once."""
        rdzv_id = "" if self._machine is None else self._machine.rdzv_id
        if not rdzv_id:
            return store
        if hosts:
            store.set(GROUP, rdzv_id)
        found = bytes(store.get(GROUP)).decode()
        if found != rdzv_id:
            raise PeerLost(f"this is the group {rdzv_id}, and the one at the store is {found}")
        return dist.PrefixStore(  # type: ignore[attr-defined]  # torch exports it without saying so
            rdzv_id, store
        )

    def _connect(self, *, hosts: bool) -> Any:
        listen_fd = self._listen_fd if hosts else None
        if hosts and listen_fd is None:
            listen_fd = listen(self._host, self._port)  # by itself, the store binds to everything
        return dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it without saying so
            self._host,
            self._port,
            self.size,
            is_master=hosts,
            timeout=timedelta(seconds=self._join_s),
            wait_for_workers=False,
            master_listen_fd=listen_fd,
        )


def listen(host: str, port: int) -> int:
    """Return a file descriptor that listens at this address only; the caller closes it."""
    with socket.create_server((host, port), backlog=128) as made:
        return made.detach()


def interface_of(host: str) -> str:
    """Return the name of the network interface that has the address of `host`.

    Raises:
        OSError: none has.
    """
    import psutil

    wanted = socket.gethostbyname(host)
    found = {one.address: name for name, every in psutil.net_if_addrs().items() for one in every}
    local = found.get("127.0.0.1") if wanted.startswith("127.") else None
    name = found.get(wanted) or local
    if name is None:
        raise OSError(f"no network interface of this machine has the address {wanted}")
    return name


def keep_forever(thing: object) -> None:
    """Never let Python destroy an object, not even when it ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
