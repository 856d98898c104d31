"""One training job from config to adapter, in stages that are skipped when their result is whole.

An eviction in any stage is one and the same case: the next start does what is still missing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from trainer.atomic import RealDisk
from trainer.config import EvictionBand
from trainer.device.garbage import collection_paused
from trainer.device.host_memory import address_space
from trainer.device.waiting import prepare_waits
from trainer.errors import ConfigError, DoesNotFit, PeerLost, Preempted
from trainer.eviction import NOTICE_APIS, MetadataPoll, PreemptionFlag, is_of_peer, on_signals
from trainer.exit_codes import ExitCode
from trainer.group.alone import ALONE
from trainer.group.cards import assign_cards, find_cards
from trainer.group.launch import RankPlace, end_with_parent
from trainer.group.machines import Machine
from trainer.group.peers import Peers
from trainer.group.rank_exit import PEER_LOST
from trainer.job.context import JobContext, JobOptions
from trainer.job.missing import MissingJob, find_missing, open_status, reported
from trainer.job.on_cards import run_on_cards
from trainer.job.writers import EVERYTHING, NOTHING, OWN_STATE, Writers
from trainer.rundir.layout import (
    alone_in,
    sweep,
)
from trainer.rundir.status import HeartbeatWriter, Phase
from trainer.secret import hidden_in_output, read_secret
from trainer.text import amount, gigabytes, positive, print_line

MACHINE_NUMBERS = {
    "--nnodes": "how many machines do the training together, each with a run directory of its own",
    "--node-rank": "the number of this machine, from 0",
    "--master-port": "the port on which machine 0 lets the others find it",
}
MACHINE_ADDRESSES = {
    "--master-addr": "the address of machine 0 on the private network of the machines",
    "--interface-address": "this machine's own address there; nothing listens on another one",
}
LIBRARIES_BYTES = 800 << 20
"""Of address space: what torch 2.13 for CPUs and its companions take at least, as measured."""


def run_job(
    options: JobOptions,
    on_message: Callable[[str], None],
    *,
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
) -> None:
    """Do the whole job; return when the adapter is whole and scored.

    A run that begins here begins on the day, in UTC, of `now()`.

    Raises:
        Preempted: a notice came; everything done so far is saved.
        ConfigError, DoesNotFit, Diverged: the settings must change.
        DataError: the rows must change.
        Busy: another trainer runs in this directory.
        OSError: the disk or the network fails; whole checkpoints stand.
    """
    flag = PreemptionFlag(time.monotonic)
    with on_signals(flag), alone_in(options.run_dir):  # a SIGTERM is heard from the first moment
        sweep(options.run_dir, disk=RealDisk())
        do_job(options, flag, on_message, now=now)


def do_job(
    options: JobOptions,
    flag: PreemptionFlag,
    on_message: Callable[[str], None],
    *,
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
) -> None:
    """Do the whole job in a run directory that is ours: alone, or as one of several ranks.

    Raises as `run_job`; a rank raises `PeerLost` if another one is gone.
    """
    writers = writers_of(options)
    status = open_status(options, writers, now=now)
    with status, polling(options, flag, on_message), reported(status, options, flag):
        missing = find_missing(options, status, on_message, disk=writers.disk, now=now)
        if missing is not None or options.machine is not None:
            _do_what_is_missing(options, missing, flag, on_message, status=status)
        status.update(phase=Phase.DONE, message=None, eta_s=0.0)


def _do_what_is_missing(
    options: JobOptions,
    missing: MissingJob | None,
    flag: PreemptionFlag,
    on_message: Callable[[str], None],
    *,
    status: HeartbeatWriter,
) -> None:
    prepare_environment()
    require_address_space()
    with collection_paused():
        from trainer.job import stages  # torch takes seconds; what is done needs none of it

    with joined_peers(options, flag, on_message) as peers:
        finished = [at for at, one in enumerate(peers.gather(missing is None)) if one]
        if missing is None or finished:
            on_message(f"everything is done already, where rank {finished[0]} is: nothing to do")
            return
        stages.run_stages(
            JobContext(
                options=options,
                config=missing.config,
                inputs=missing.inputs,
                heartbeat=status,
                flag=flag,
                on_message=on_message if writers_of(options).save else silent,
                peers=peers,
                writers=writers_of(options),
            )
        )


@contextmanager
def joined_peers(
    options: JobOptions, flag: PreemptionFlag, on_message: Callable[[str], None]
) -> Iterator[Peers]:
    """Join the other ranks, if there are any; a process alone imports nothing for it."""
    place = options.place
    if place is None:
        yield ALONE
        return
    import torch

    from trainer.group.joined import join

    with join(
        rank=place.rank,
        size=place.size,
        address=place.address,
        listen_fd=place.listen_fd,
        device=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"),
        flag=flag,
        on_message=on_message,
        machine=options.machine,
    ) as peers:
        yield peers


def writers_of(options: JobOptions) -> Writers:
    """Return what this process writes: all, unless it is a rank that is not the very first."""
    if options.place is not None and options.place.rank > 0:
        return NOTHING
    further = options.place is not None and options.machine is not None and options.machine.number
    return OWN_STATE if further else EVERYTHING


def silent(_text: str) -> None:
    """Say nothing: the first rank says the same."""


def require_address_space() -> None:
    """Raise `DoesNotFit` if `ulimit -v` leaves too little for the libraries.

    Some of them end the process by themselves if memory runs out while they are loaded.
    """
    found = address_space()
    if found is not None and found.bytes < LIBRARIES_BYTES:
        raise DoesNotFit(
            f"torch and what belongs to it take about {gigabytes(LIBRARIES_BYTES)}, and "
            f"{gigabytes(found.bytes)} are free of {gigabytes(found.limit_bytes)}: {found.limit}"
        )


def prepare_environment(*, adaptive_waits: bool = False) -> None:
    """Set what torch reads when it is imported, and transformers when it loads; call before that.

    No compiling: bitsandbytes quantises through `torch.compile` where a C++ compiler happens to be
    installed, which is slow to load and makes the bits of the base depend on the machine. No
    spinning, or only where a thread of ours ends it when others want the cores (`adaptive_waits`);
    a user's own choice is respected. No conversion: of a base that has pickled weights only,
    transformers would ask a service on the hub for others, and hand it the token
    (`transformers.safetensors_conversion.spawn_conversion`).
    """
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    prepare_waits(os.environ, adaptive=adaptive_waits)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def polling(
    options: JobOptions, flag: PreemptionFlag, on_message: Callable[[str], None]
) -> Iterator[None]:
    """Ask the metadata service for notices while inside; without a URL, ask nobody."""
    if options.metadata_url is None or (options.place is not None and options.place.rank):
        yield  # or the first rank asks for all, and tells them
        return
    poll = MetadataPoll(
        url=options.metadata_url,
        api=options.metadata_api,
        flag=flag,
        now=_now,
        on_message=on_message,
    )
    poll.start()
    try:
        yield
    finally:
        poll.close()


def _now() -> datetime:
    return datetime.now(tz=UTC)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which run is trained, and what the machine tells of itself."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--metadata-url", help="metadata service that announces evictions")
    parser.add_argument(
        "--metadata-api", choices=list(NOTICE_APIS), default="azure",
        help="whose metadata service that is",
    )  # fmt: skip
    parser.add_argument(
        "--allow-change", nargs="+", action="extend", default=[], metavar="KEY",
        help="accept that this setting differs from the interrupted run",
    )  # fmt: skip
    parser.add_argument(
        "--eviction-band", type=EvictionBand, choices=list(EvictionBand), metavar="BAND",
        help="evictions per hour in percent: 0-5, 5-10, 10-15, 15-20 or 20+",
    )  # fmt: skip
    parser.add_argument(
        "--price-usd-per-h", type=amount, default=0.0, metavar="USD",
        help="what the machine costs, for the cost so far in every checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--token-stdin", action="store_true",
        help="read a hub's token from stdin; it is kept in memory only",
    )  # fmt: skip
    parser.add_argument(
        "--cards", type=positive, default=1, metavar="N",
        help="use so many cards, each by a process of its own; the bits are those of one",
    )  # fmt: skip
    parser.add_argument(
        "--total-cards", type=positive, metavar="N",
        help="how many cards all machines of the run are to have, whoever is there now: it decides"
        " the micro-batch at the first start",
    )  # fmt: skip
    for name, what in MACHINE_NUMBERS.items():
        parser.add_argument(name, type=int, metavar="N", help=what)
    for name, what in MACHINE_ADDRESSES.items():
        parser.add_argument(name, metavar="ADDRESS", help=what)
    parser.add_argument(
        "--rdzv-id", metavar="TEXT", default="", help="which group of machines this is; any text"
    )
    for name in ("--rank", "--ranks", "--listen-fd", "--launcher"):  # how ranks are started
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Do the whole job: in this process, as one of several ranks, or by starting those."""
    if args.launcher is not None:
        end_with_parent(args.launcher)
    token = read_secret() if args.token_stdin else None
    options = JobOptions(
        run_dir=args.run_dir.resolve(),
        metadata_url=args.metadata_url,
        metadata_api=args.metadata_api,
        allow_change=tuple(args.allow_change),
        band=args.eviction_band,
        price_usd_per_h=args.price_usd_per_h,
        cards=args.cards,
        total_cards=args.total_cards,
        machine=machine_of(args),
        place=place_of(args),
        token=token,
    )
    with hidden_in_output(token):
        return run_here(options, print_line)


def place_of(args: argparse.Namespace) -> RankPlace | None:
    """Return which rank the arguments name; None if this process was started by nobody of ours."""
    if args.rank is None:
        return None
    return RankPlace(rank=args.rank, size=args.ranks, address=args.store, listen_fd=args.listen_fd)


def machine_of(args: argparse.Namespace) -> Machine | None:
    """Return which of several machines the arguments name; None if there is one only.

    Raises:
        ConfigError: one of these arguments is missing, or a number is out of range.
    """
    if args.nnodes is None or args.nnodes == 1:
        return None
    given = (args.node_rank, args.master_addr, args.master_port, args.interface_address)
    if None in given or not 0 <= args.node_rank < args.nnodes:
        names = ", ".join(name for name in (*MACHINE_NUMBERS, *MACHINE_ADDRESSES))
        raise ConfigError([f"{names}: give all of them, and a --node-rank under --nnodes"])
    return Machine(
        number=args.node_rank,
        count=args.nnodes,
        store=f"{args.master_addr}:{args.master_port}",
        address=args.interface_address,
        rdzv_id=args.rdzv_id,
    )


def run_here(options: JobOptions, on_message: Callable[[str], None]) -> int:
    """Choose who does the job by how many cards it is for, and return the exit code."""
    if options.place is not None:
        flag = PreemptionFlag(time.monotonic)
        with on_signals(flag):
            try:
                do_job(options, flag, on_message)
            except PeerLost as error:
                on_message(f"another rank was lost: {error}")
                return PEER_LOST
            except Preempted:
                if options.machine is None or not is_of_peer(flag):
                    raise
                on_message("another rank had a notice: the state is saved")
                return PEER_LOST
        return ExitCode.DONE
    if options.cards > 1 or options.machine is not None:
        found = find_cards(os.environ)
        cards = assign_cards(options.cards, found)
        if len(cards) < options.cards:
            on_message(
                f"warning: the run is for {options.cards} cards, and this machine has "
                f"{len(found)}: it goes on with {len(cards)}, slower and with the same bits"
            )
        if len(cards) > 1 or options.machine is not None:
            return run_on_cards(options, cards, on_message)
    run_job(options, on_message)
    return ExitCode.DONE
