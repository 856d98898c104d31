"""The command `python tests/chaos_group`: fifty kills over six configurations, table and verdict.

The world size of every run changes 1, 3, 2, 1 … between its starts. The exit code is 0 if all runs
have, at every step, the parameters of a run by one process that nobody disturbed, and end with its
adapter and scores; if nobody had to do more than one step again; and if no process remained.
"""

# ruff: noqa: T201 - it is a command that talks
from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos_group.configurations import METHODS, make_config
from chaos_group.plan import choose_kills, counts_by_name
from chaos_group.rounds import try_all
from chaos_group.verdict import Tried, exit_code, table
from trainer.job.job import prepare_environment


def main(argv: Sequence[str]) -> int:
    """Do the kills; return 0 if everything is as promised."""
    arguments = parse(argv)
    chance = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    names = arguments.only or list(METHODS)
    print(f"{arguments.kills} kills, seed {arguments.seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left
    prepare_environment()
    began_s = time.monotonic()
    tried: list[Tried] = []
    for name, count in counts_by_name(names, arguments.kills).items():
        kills = choose_kills(count, chance)
        with tempfile.TemporaryDirectory(prefix="chaos-group-") as directory:
            folder = Path(directory)
            tried.append(
                try_all(
                    name, kills, config=make_config(name, folder), folder=folder, on_message=show
                )
            )
    minutes = (time.monotonic() - began_s) / 60
    print("\n".join(["", *table(tried), ""]))
    done, runs = sum(len(one.results) for one in tried), sum(one.runs for one in tried)
    print(f"{done} kills over {runs} runs in {minutes:.1f} min, seed {arguments.seed}")
    for one in tried:
        for problem in one.problems:
            print(f"PROBLEM {one.name}: {problem}")
    if arguments.json:
        record = {"seed": arguments.seed, "minutes": minutes, "tried": [t.to_json() for t in tried]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return exit_code(tried, kills=arguments.kills)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/chaos_group", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--kills", type=int, default=50, help="of all configurations together")
    parser.add_argument(
        "--only", nargs="+", choices=list(METHODS), default=[], help="these configurations"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of who is killed, how, and at which moment"
    )
    parser.add_argument("--json", type=Path, help="write every kill to this file, too")
    return parser.parse_args(argv)


def show(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
