"""The trainer's door: `python -m trainer`, its commands and the exit codes that the laptop acts on.

0 done · 2 bad command line · 65 bad data · 70 bug · 73 another trainer works here
74 disk or network failed · 75 preempted, state saved · 78 bad config · 128+N ended by signal N
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from trainer.config import ConfigError, EvictionBand
from trainer.context import JobOptions
from trainer.data.rows import DataError
from trainer.errors import Busy, Preempted
from trainer.job.job import prepare_environment, run_job
from trainer.tool import loading_failure

INTERRUPTED = 130
DONE, DIFFERS, BAD_DATA, BUG, BUSY, FAILED_IO, PREEMPTED, BAD_CONFIG = 0, 1, 65, 70, 73, 74, 75, 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; only a bug of ours shows a traceback."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except Preempted:
        on_message("preempted: the state is saved, the same command goes on from there")
        return PREEMPTED
    except ConfigError as error:
        return report_failure("the config cannot be used", error.problems, BAD_CONFIG)
    except DataError as error:
        return report_failure("the data cannot be used", [str(error)], BAD_DATA)
    except Busy as error:
        return report_failure("busy", [str(error)], BUSY)
    except OSError as error:
        if lacks := loading_failure(error):  # such as of a library that is not there
            return report_failure("nothing can be trained here", [lacks], BAD_CONFIG)
        return report_failure(
            "the disk or the network failed", [describe_os_error(error)], FAILED_IO
        )
    except KeyboardInterrupt:
        on_message("interrupted: the newest checkpoint stands, the same command goes on from there")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort, with its own exit code
        if lacks := loading_failure(error):
            return report_failure("nothing can be trained here", [lacks], BAD_CONFIG)
        traceback.print_exc()
        return BUG


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    top = argparse.ArgumentParser(prog="python -m trainer", description=__doc__.split("\n")[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train", help="train, or go on training, until the adapter is whole"
    )
    train.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    train.add_argument("--metadata-url", help="metadata service that announces evictions")
    train.add_argument(
        "--allow-change", nargs="+", action="extend", default=[], metavar="KEY",
        help="accept that this setting differs from the interrupted run",
    )  # fmt: skip
    train.add_argument(
        "--eviction-band", type=EvictionBand, choices=list(EvictionBand), metavar="BAND",
        help="evictions per hour in percent: 0-5, 5-10, 10-15, 15-20 or 20+",
    )  # fmt: skip
    train.add_argument(
        "--price-usd-per-h", type=amount, default=0.0, metavar="USD",
        help="what the machine costs, for the cost so far in every checkpoint",
    )  # fmt: skip
    train.set_defaults(run=run_train)

    score = commands.add_parser("eval", help="score the base, or an adapter, on the held-out rows")
    score.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    score.add_argument("--adapter", type=Path, help="directory of an adapter; without: the base")
    score.set_defaults(run=run_eval)

    verify = commands.add_parser("verify", help="do some steps again and compare every bit")
    verify.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    verify.add_argument("--steps", type=positive, help="how many; default: to the last checkpoint")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=run_verify)

    export = commands.add_parser("export", help="write a plain LoRA adapter that any PEFT loads")
    export.add_argument("--run-dir", type=Path, required=True, help="where adapter/ lies")
    export.add_argument("--rank", type=positive, help="of a DyLoRA run; default: the best one")
    export.add_argument("--out", type=Path, help="new directory; default: exported/ in the run")
    export.set_defaults(run=run_export)

    probe = commands.add_parser("probe", help="print versions and device as JSON")
    probe.set_defaults(run=run_probe)
    return top


def run_train(arguments: argparse.Namespace) -> int:
    """Do the whole job."""
    run_job(
        JobOptions(
            run_dir=arguments.run_dir.resolve(),
            metadata_url=arguments.metadata_url,
            allow_change=tuple(arguments.allow_change),
            band=arguments.eviction_band,
            price_usd_per_h=arguments.price_usd_per_h,
        ),
        on_message,
    )
    return DONE


def run_eval(arguments: argparse.Namespace) -> int:
    """Score once more and print the result as JSON."""
    prepare_environment()
    from trainer.scoring.rescore import rescore

    def beat(done: int, total: int) -> None:
        on_message(f"evaluated {done} of {total} rows")

    result = rescore(arguments.run_dir.resolve(), arguments.adapter, beat=beat)
    sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return DONE


def run_verify(arguments: argparse.Namespace) -> int:
    """Replay a part of the run and say whether it gave the same bits."""
    prepare_environment()
    from trainer.job.replay import replay, to_json, to_text

    result = replay(
        arguments.run_dir.resolve(), steps=arguments.steps, clock=monotonic, on_message=on_message
    )
    text = json.dumps(to_json(result), indent=1) if arguments.json else to_text(result)
    sys.stdout.write(text + "\n")
    return DONE if result.equal else DIFFERS


def run_export(arguments: argparse.Namespace) -> int:
    """Write the plain adapter and print where it is."""
    from trainer.results.export import export

    run_dir = arguments.run_dir.resolve()
    out = arguments.out.resolve() if arguments.out else run_dir / "exported"
    done = export(run_dir / "adapter", out, rank=arguments.rank)
    sys.stdout.write(f"{done.directory}: rank {done.rank}, {done.bytes} bytes\n")
    return DONE


def positive(text: str) -> int:
    """Read a whole number above zero."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def amount(text: str) -> float:
    """Read a finite number, zero or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def run_probe(_arguments: argparse.Namespace) -> int:
    """Print what this machine can do, for the laptop to check before it trains."""
    from trainer.device.probe import probe

    sys.stdout.write(json.dumps(probe(), indent=1) + "\n")
    return DONE


def describe_os_error(error: OSError) -> str:
    """Say what failed where, and what to do about a full disk."""
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return f"{where}{what}{'; free some space, or take a larger disk' if full else ''}"


def report_failure(what: str, problems: Sequence[str], code: int) -> int:
    """Tell the user what to change, and return the exit code."""
    on_message(f"{what}:")
    for problem in problems:
        on_message(f"  {problem}")
    return code


def on_message(text: str) -> None:
    """Talk to the person who reads the log."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the log of the job is its stderr


if __name__ == "__main__":
    sys.exit(main())
