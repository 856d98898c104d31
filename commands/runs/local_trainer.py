"""Runs the trainer's tools on this computer, on a run directory laid out as on a machine.

Each tool is a program of its own, so that the command line itself never loads torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE

from commands.runs import python_program
from commands.runs.base_record import HubBase, recorded_base
from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder, environment, read_saved_config
from commands.runs.parent_adapter import kept_parent
from commands.runs.payload import build_payload
from commands.runs.run_day import day_of_run
from commands.ui.errors import HostError, TrainingError, UsageError
from commands.ui.output import log
from trainer.exit_codes import ExitCode

MENDED_BY_THE_USER = (ExitCode.BAD_DATA, ExitCode.BAD_CONFIG, ExitCode.USAGE)
"""Everything else is the trainer's failure."""
LAST_LINES = 20
STREAM_BYTES = 1 << 16


@contextlib.contextmanager
def local_run_dir(
    loaded: LoadedConfig, folder: RunFolder, base: HubBase | None = None
) -> Iterator[Path]:
    """Yield a scratch run directory with config, data, model, log and checkpoints of the run.

    Paths are those of the machine, so the trainer's fingerprint is the same. Gone afterwards. The
    base on a hub is the one that the run recorded, unless another `base` is given.
    """
    with tempfile.TemporaryDirectory(prefix="qft-bench-") as scratch:
        root = Path(scratch)
        base = base or recorded_base(loaded, read_saved_config(folder), folder)
        day = day_of_run(loaded, folder)
        payload = build_payload(loaded, root / "staging", base=base, day=day)
        (root / "data").mkdir()
        for name, path in payload.data.items():
            (root / "data" / name).symlink_to(path.absolute())
        if payload.model is not None:
            (root / "model").symlink_to(payload.model.absolute())
        parent = kept_parent(folder.payload)
        if parent is not None:
            (root / "parent").symlink_to(parent.absolute())
        run_dir = root / "run"
        run_dir.mkdir()
        shutil.copyfile(payload.config, run_dir / "config.json")
        for name in ("metrics.jsonl", "memory.json"):  # what was done, and how it was computed
            if (loaded.out / name).exists():
                shutil.copyfile(loaded.out / name, run_dir / name)
        if folder.checkpoints.is_dir():
            shutil.copytree(folder.checkpoints, run_dir / "checkpoints")
        yield run_dir


def start(
    tool: str, *arguments: str, stdout: int | None = PIPE, stderr: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of the trainer's tools to its end; by default its stderr is shown as it comes."""
    return python_program.start(
        "trainer", [tool, *arguments], around=environment(), stdout=stdout, stderr=stderr
    )


def output_of(tool: str, *arguments: str, as_json: bool) -> str:
    """Run one of the trainer's tools and return what it printed.

    Its stderr is shown as it comes, except with --json, where its last lines become the error's.
    Raises as `check_exit` does.
    """
    done = start(tool, *arguments, stderr=PIPE if as_json else None)
    errors = (done.stderr or "").strip()
    if done.returncode == 0 and errors:
        log(errors)
    check_exit(tool, done.returncode, errors.splitlines()[-LAST_LINES:])
    return done.stdout


def stream_of(
    tool: str, *arguments: str, write: Callable[[bytes], None], as_json: bool = False
) -> None:
    """Run one of the trainer's tools, and give `write` what it prints as it comes.

    Its stderr is shown as it comes, except with --json, where it is shown at the end, or its last
    lines become the error's. Raises as `check_exit` does.
    """
    with (
        tempfile.TemporaryFile() as errors,
        python_program.running(
            "trainer", [tool, *arguments], around=environment(), stderr=errors if as_json else None
        ) as program,
    ):
        assert program.stdout is not None
        while data := os.read(program.stdout.fileno(), STREAM_BYTES):
            write(data)
        code = program.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip()
    if code == 0 and lines:
        log(lines)
    check_exit(tool, code, lines.splitlines()[-LAST_LINES:])


def check_exit(tool: str, code: int, errors: Sequence[str] = ()) -> None:
    """Raise the error that the exit code of a tool stands for; `errors` is its captured stderr.

    Raises:
        UsageError: the data or the config cannot be used.
        HostError: the hub was not reached.
        TrainingError: anything else.
    """
    if code == 0:
        return
    above = "" if errors else "; its message is above"
    lines = list(errors)
    hint = lines.pop().removeprefix("hint: ") if lines and lines[-1].startswith("hint: ") else ""
    if code in MENDED_BY_THE_USER:
        message = f"`{tool}` could not use what it was given{above}"
        raise UsageError(message, problems=lines, hint=hint)
    if code == ExitCode.FAILED_IO and tool == "publish":
        raise HostError(f"the hub was not reached{above}", problems=lines, hint=hint)
    raise TrainingError(f"`{tool}` ended with exit code {code}", problems=lines, hint=hint)
