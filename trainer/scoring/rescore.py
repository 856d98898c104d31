"""Scores a base or an adapter again on the run's held-out rows, without training anything."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import hub
from trainer.device.determinism import make_deterministic, set_threads
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.model import load_for_inference
from trainer.rundir.layout import resolve
from trainer.saving.run_day import load_run_config
from trainer.scoring import evaluate
from trainer.text import print_line


def rescore(
    run_dir: Path, adapter: Path | None, *, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Return the scores of `adapter` on the base of `run_dir`, or of the base alone if it is None.

    Nothing in the run directory changes.

    Raises:
        ConfigError: the run scores nothing, or there is no adapter where one was named.
        DataError: the held-out rows cannot be used.
    """
    config = load_run_config(run_dir)
    if config.scored is None or config.data.eval is None:
        raise ConfigError(
            ["eval: no rows are held out, or it is `none`: there is nothing to score"]
        )
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise ConfigError([f"--adapter: there is no adapter in {adapter}"])

    def absolute(name: str) -> str:  # read from anywhere; a name on a hub is one already
        return name if hub.parse(name) else str(resolve(run_dir, name))

    changed: dict[str, Any] = {"data": config.data.with_paths(absolute)}
    if config.eval is not None and config.scored.general is not None:
        name = absolute(config.scored.general)
        changed["eval"] = config.scored.model_copy(update={"general": name})
    make_deterministic()
    set_threads(config.train)
    model, tokenizer = load_for_inference(config, run_dir, adapter)
    with tempfile.TemporaryDirectory() as scratch:
        before = run_dir / "eval-before.json"
        if adapter is not None and before.is_file():  # so that the change is measured, too
            shutil.copyfile(before, Path(scratch) / before.name)
        result = evaluate.run(
            Path(scratch),
            config.model_copy(update=changed),
            model,
            tokenizer,
            stage="before" if adapter is None else "after",
            on_progress=on_progress,
        )
    return dict(json.loads(json.dumps(asdict(result))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the adapter to score."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--adapter", type=Path, help="directory of an adapter; without: the base")


def run(args: argparse.Namespace) -> int:
    """Score once more and print the result as JSON."""

    def on_progress(done: int, total: int) -> None:
        print_line(f"evaluated {done} of {total} rows")

    result = rescore(args.run_dir.resolve(), args.adapter, on_progress=on_progress)
    sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return ExitCode.DONE
