"""Does a job by several ranks: holds the run directory for them, starts them, and ends as they do.

This process loads no library that computes. What is wrong with config or rows is found here, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from trainer.atomic import RealDisk
from trainer.estimate.share import describe_split
from trainer.eviction import PreemptionFlag, on_signals
from trainer.exit_codes import ExitCode
from trainer.group.launch import Ended, Launch, interpreter_command, run_ranks
from trainer.group.rank_exit import PEER_DONE, PEER_LOST, SIGNALLED, choose, culprit, describe
from trainer.job.context import JobOptions
from trainer.job.missing import find_missing, open_status, reported
from trainer.job.writers import EVERYTHING
from trainer.rundir.layout import STATUS, alone_in, finished, read_table, sweep
from trainer.rundir.status import Phase, write_failure


def run_on_cards(
    options: JobOptions,
    cards: Sequence[str | None],
    on_message: Callable[[str], None],
    *,
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
) -> int:
    """Do the whole job by one rank for each of `cards`; return the exit code to be acted on.

    Raises as `trainer.job.job.run_job` for what is wrong before a rank is started.
    """
    flag = PreemptionFlag(time.monotonic)
    with on_signals(flag), alone_in(options.run_dir) as lock:
        sweep(options.run_dir, disk=RealDisk())
        status = open_status(options, EVERYTHING, now=now)
        with status, reported(status, options, flag):
            missing = find_missing(options, status, on_message, disk=RealDisk(), now=now)
            if missing is None and options.machine is None:
                status.update(phase=Phase.DONE, message=None, eta_s=0.0)
                return ExitCode.DONE
        if missing is not None:
            here = options.cards * (options.machine.count if options.machine else 1)
            on_message(describe_split(missing.config, here))
        launch = Launch(
            command=[*interpreter_command(), *rank_arguments(options)],
            cards=cards,
            environ=os.environ,
            token=options.token,
            lock=lock,
            machine=options.machine,
        )
        ended = run_ranks(
            launch, flag, on_message=on_message, clock=time.monotonic, sleep=time.sleep
        )
        code = choose(ended.ends, noticed=flag.notice is not None)
        if options.machine is not None:
            codes = {one.code for one in ended.ends}
            has_results = missing is None or finished(
                options.run_dir, missing.config, missing.inputs
            )
            if flag.notice is None and PEER_LOST in codes and codes <= {PEER_LOST, ExitCode.DONE}:
                return PEER_LOST  # all is well here: another machine was lost
            if code == ExitCode.DONE and not has_results:
                return PEER_DONE
        report_failure(options, ended, on_message, now=now)
        return code


def rank_arguments(options: JobOptions) -> list[str]:
    """Return the arguments of every rank: those that this process was given."""
    words = ["train", "--run-dir", str(options.run_dir), "--cards", str(options.cards)]
    if options.metadata_url is not None:
        words += ["--metadata-url", options.metadata_url, "--metadata-api", options.metadata_api]
    if options.allow_change:
        words += ["--allow-change", *options.allow_change]
    if options.band is not None:
        words += ["--eviction-band", str(options.band)]
    if options.price_usd_per_h:
        words += ["--price-usd-per-h", repr(options.price_usd_per_h)]
    if options.total_cards is not None:
        words += ["--total-cards", str(options.total_cards)]
    if options.machine is not None:
        words += options.machine.to_arguments()
    return [*words, *(["--token-stdin"] if options.token is not None else [])]


def report_failure(
    options: JobOptions,
    ended: Ended,
    on_message: Callable[[str], None],
    *,
    now: Callable[[], datetime],
) -> None:
    """Let log and status say which rank failed and why, unless the first has said it of itself."""
    rank = culprit(ended.ends)
    path = options.run_dir / STATUS
    if rank is None or (rank == 0 and read_table(path).get("phase") == Phase.FAILED):
        return
    end = ended.ends[rank]
    words = ended.errors[rank] if end.code < SIGNALLED else ""  # one that was killed says nothing
    error = f"card {rank}: {words or describe(end)}"
    error = options.token.hide_in(error) if options.token else error
    on_message(error)
    write_failure(path, error, disk=RealDisk(), now=now)
