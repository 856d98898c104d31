"""A run directory on this computer, laid out as on the machine, for looking at a run at home."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from commands.runs import python_program
from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder, environment
from commands.runs.payload import stage


@contextlib.contextmanager
def local_run_dir(loaded: LoadedConfig, folder: RunFolder) -> Iterator[Path]:
    """Yield a scratch run directory with config, data, model, log and checkpoints of the run.

    Paths are those of the machine, so the trainer's fingerprint is the same. Gone afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="qft-bench-") as scratch:
        root = Path(scratch)
        staged = stage(loaded, folder.staging)
        (root / "data").mkdir()
        for name, path in staged.data.items():
            (root / "data" / name).symlink_to(path.absolute())
        if staged.model is not None:
            (root / "model").symlink_to(staged.model.absolute())
        run_dir = root / "run"
        run_dir.mkdir()
        shutil.copyfile(staged.config, run_dir / "config.json")
        log = loaded.out / "metrics.jsonl"
        if log.exists():
            shutil.copyfile(log, run_dir / "metrics.jsonl")
        if folder.checkpoints.is_dir():
            shutil.copytree(folder.checkpoints, run_dir / "checkpoints")
        yield run_dir


def trainer(run_dir: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the trainer here on a run directory; its talk goes to stderr as it comes."""
    words = [command, "--run-dir", str(run_dir), *arguments]
    return python_program.start("trainer", words, around=environment(), stdout=subprocess.PIPE)
