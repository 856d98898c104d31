"""Runs the real trainer and notes the CPU seconds at which loading and the first step begin.

    python -m bench.timed_start RESULT.json PLAIN RUN_DIR

With PLAIN 0 nothing is changed but the notes. With 1, the base is loaded three times: first to have
every import behind it, then as the trainer does it, then quantised anew from the published weights.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Notes = dict[str, float]


def main(arguments: Sequence[str]) -> int:
    """Train in the run directory; leave the notes even if the process is killed later."""
    result, plain, run_dir = Path(arguments[0]), arguments[1] == "1", arguments[2]
    from trainer.job.job import prepare_environment

    prepare_environment()
    watch(result, plain=plain)
    from trainer.__main__ import main as train

    return train(["train", "--run-dir", run_dir])


def watch(result: Path, *, plain: bool) -> None:
    """Put notes around the loading of the base and before the first step."""
    from trainer import model as models

    stages: Any = importlib.import_module("trainer.job.stages")  # where `train` is looked up
    load_base, train = models.load_base, stages.train
    notes: Notes = {}

    def write() -> None:
        result.write_text(json.dumps(notes), encoding="utf-8")

    def timed_load(*args: Any, **named: Any) -> Any:
        notes["load_begins_s"] = time.process_time()
        anew = {**named, "stored": None} if "stored" in named else named
        if plain:
            load_base(*args, **anew)
            notes["imported_s"] = time.process_time()
        began_s = time.process_time()
        base = load_base(*args, **named)
        notes["load_s"] = time.process_time() - began_s
        if plain:
            began_s = time.process_time()
            load_base(*args, **anew)
            notes["anew_s"] = time.process_time() - began_s
        write()
        return base

    def timed_train(*args: Any, **named: Any) -> Any:
        notes["step_begins_s"] = time.process_time()
        notes["step_begins_at"] = time.time()
        write()
        return train(*args, **named)

    models.load_base = timed_load
    stages.train = timed_train


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
