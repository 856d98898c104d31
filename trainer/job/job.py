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
from trainer.config import EvictionBand, TrainerConfig, load_config
from trainer.device.garbage import collection_paused
from trainer.device.host_memory import address_space
from trainer.device.waiting import prepare_waits
from trainer.errors import DoesNotFit, Preempted
from trainer.eviction import NOTICE_APIS, MetadataPoll, PreemptionFlag, on_signals
from trainer.exit_codes import ExitCode
from trainer.job.context import JobContext, JobOptions, with_parent
from trainer.rundir.fingerprint import permitted_keys
from trainer.rundir.layout import (
    ADAPTER,
    CONFIG,
    RECEIPT,
    adapter_done,
    alone_in,
    data_facts,
    finished,
    read_table,
    sweep,
)
from trainer.rundir.status import HeartbeatWriter, Phase
from trainer.saving.run_day import fix_day
from trainer.secret import hidden_in_output, read_secret
from trainer.text import amount, gigabytes, print_line

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
        heartbeat = HeartbeatWriter(options.run_dir / "status.json", disk=RealDisk(), now=now)
        with heartbeat, polling(options, flag, on_message):
            try:
                config = load_config(options.run_dir / CONFIG)
                today = now().astimezone(UTC).date()
                config = fix_day(options.run_dir, config, today=today, disk=RealDisk())
                _do_what_is_missing(options, config, heartbeat, flag, on_message)
            except Preempted:
                reason = flag.notice.reason if flag.notice else "notice"
                heartbeat.update(phase=Phase.PREEMPTED, message=f"stopped by {reason}, state saved")
                raise
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
                text = options.token.hide_in(text) if options.token else text
                heartbeat.update(phase=Phase.FAILED, error=text)
                raise
            heartbeat.update(phase=Phase.DONE, message=None, eta_s=0.0)


def _do_what_is_missing(
    options: JobOptions,
    config: TrainerConfig,
    heartbeat: HeartbeatWriter,
    flag: PreemptionFlag,
    on_message: Callable[[str], None],
) -> None:
    config = with_parent(config, options.run_dir)
    permitted_keys(options.allow_change)  # a slip is reported now, not at the first resume
    inputs = data_facts(config, options.run_dir)
    if adapter_done(options.run_dir, config, inputs):
        heartbeat.update(**read_table(options.run_dir / ADAPTER / RECEIPT).get("status", {}))
    if finished(options.run_dir, config, inputs):
        on_message("everything is done already: nothing to do")
        return
    prepare_environment()
    require_address_space()
    with collection_paused():
        from trainer.job import stages  # torch takes seconds; what is done needs none of it

    stages.run_stages(
        JobContext(
            options=options,
            config=config,
            inputs=inputs,
            heartbeat=heartbeat,
            flag=flag,
            on_message=on_message,
        )
    )


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
    if options.metadata_url is None:
        yield
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


def run(args: argparse.Namespace) -> int:
    """Do the whole job."""
    token = read_secret() if args.token_stdin else None
    options = JobOptions(
        run_dir=args.run_dir.resolve(),
        metadata_url=args.metadata_url,
        metadata_api=args.metadata_api,
        allow_change=tuple(args.allow_change),
        band=args.eviction_band,
        price_usd_per_h=args.price_usd_per_h,
        token=token,
    )
    with hidden_in_output(token):
        run_job(options, print_line)
    return ExitCode.DONE
