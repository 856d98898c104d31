"""Where qft keeps what it knows on this computer: a private folder per run, one driver each."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from commands.runs.yaml_values import Misread, read_tables
from commands.ui.errors import UsageError
from infra.durable import LockTimeout, locked, read_json
from remote.errors import shorten

START_ONE = "`qft init` writes a run.yaml, `qft run` starts it, `qft ls` lists what was started"
RUN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,28}[a-z0-9])?")
"""What may name a run: it becomes part of cloud names, tags and folders."""

LIVE = "live"
"""The folder, beside the checkpoints at home, of what is seen of a running training."""

PROBE_S = 1.0
"""Longer than `qft status` holds the lock to see whether anybody else does."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The paths of one run under `$QFT_HOME/runs/<name>`."""

    root: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def journal(self) -> Path:
        """The append-only record."""
        return self.root / "journal.jsonl"

    @property
    def config(self) -> Path:
        """The resolved config the run was started with."""
        return self.root / "run.json"

    @property
    def plan(self) -> Path:
        """What was planned when the run began."""
        return self.root / "plan.json"

    @property
    def lock(self) -> Path:
        """Held by whoever drives the run."""
        return self.root / "lock"

    @property
    def keys(self) -> Path:
        """The run's own SSH keys, mode 0600 in a 0700 folder."""
        return self.root / "keys"

    @property
    def checkpoints(self) -> Path:
        """Verified checkpoints that came home."""
        return self.root / "checkpoints"

    @property
    def live(self) -> Path:
        """The log and the status of a running training, as far as they are at home."""
        return self.root / LIVE

    @property
    def payload(self) -> Path:
        """What is about to be pushed: the trainer's package and its config."""
        return self.root / "staging"

    @property
    def base(self) -> Path:
        """Links to the files of a base that was fetched from a hub to be sent."""
        return self.root / "base"

    def exists(self) -> bool:
        """Whether the run was ever started here."""
        return self.journal.exists()


def qft_home(environment: Mapping[str, str]) -> Path:
    """`$QFT_HOME`, or `~/.qft`."""
    chosen = environment.get("QFT_HOME")
    try:
        return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".qft"
    except RuntimeError as error:  # no such user, or a user without a home
        raise UsageError(
            f"there is no telling where `{chosen or '~/.qft'}` is: {error}",
            hint="`export QFT_HOME=/a/folder/of/yours`",
        ) from error


def run_folder(home: Path, name: str) -> RunFolder:
    """The folder of the run `name`. Raises UsageError for a name that could not be one."""
    check_name(name)
    return RunFolder(root=home / "runs" / name)


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can name a run."""
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"`{shorten(name, 60)}` cannot name a run",
            hint="use 1 to 30 of a-z, 0-9 and `-`, with a letter or digit at both ends",
        )


def make_home(folder: Path) -> None:
    """Make `$QFT_HOME` its owner's only; one that was there keeps its rights: it may be shared."""
    folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)


def require_utf8_home(home: Path) -> None:
    """Raise UsageError if no machine that this computer plays can live in there.

    Its SSH server hands out paths in UTF-8; with other bytes in them it would not come up.
    """
    try:
        str(home).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"`provider: local` cannot play a machine in `{home}`: that path is not UTF-8",
            hint="`export QFT_HOME=/another/folder`, or move this one to a name that is",
        ) from None


def require_writable(out: Path) -> None:
    """Raise UsageError if results could not be written to `out`: at the end, it would cost a run.

    Makes nothing: a folder is there, or the nearest one above it takes new ones.
    """
    there = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not there.is_dir():
        problem = f"`{there}` is in the way: it is no directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"`{there}` cannot be written"
    else:
        return
    raise UsageError(
        f"results go to `{out}`, and {problem}; nothing was rented",
        hint="move it away or mend its rights; `out` lies beside the run.yaml, which may move, too",
    )


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter."""
    folder.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)


def all_runs(home: Path) -> list[RunFolder]:
    """Every run that was ever started here, by name."""
    folder = home / "runs"
    if not folder.is_dir():
        return []
    found = [RunFolder(root=path) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [run for run in found if run.exists() and RUN_NAME.fullmatch(run.name)]


def pick_run(home: Path, wanted: str, *, cwd: Path) -> RunFolder:
    """The run that a command means: its name, its `run.yaml`, the one here, or the only one.

    Raises UsageError when there is none or no telling which.
    """
    if wanted.endswith((".yaml", ".yml")) or "/" in wanted:
        return _named_run(home, _name_in(Path(wanted)))
    if wanted:
        return _named_run(home, wanted)
    here = cwd / "run.yaml"
    if here.exists():
        return _of_folder(home, _name_in(here))
    runs = all_runs(home)
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise UsageError("there is no run yet", hint=START_ONE)
    names = ", ".join(run.name for run in runs)
    raise UsageError(
        f"which run? there are {names}", hint=f"for example `qft status {runs[0].name}`"
    )


def _named_run(home: Path, name: str) -> RunFolder:
    run = run_folder(home, name)
    if not run.exists():
        names = [other.name for other in all_runs(home)]
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        names_text = ", ".join(names) or "none yet"
        raise UsageError(f"there is no run `{name}` (known: {names_text}){meant}", hint=START_ONE)
    return run


def _of_folder(home: Path, name: str) -> RunFolder:
    """The run that the run.yaml here names: another one would be a guess, and `down` acts on it."""
    run = run_folder(home, name)
    if not run.exists():
        others = ", ".join(other.name for other in all_runs(home))
        also = f"; for another run give its name: {others}" if others else ""
        raise UsageError(
            f"the run `{name}` of the run.yaml here was not started yet",
            hint=f"`qft run` starts it{also}",
        )
    return run


def _name_in(path: Path) -> str:
    """The `name` in a run.yaml, without judging the rest of it."""
    name = read_tables(path).tables.get("name")
    if isinstance(name, Misread):
        raise UsageError(f"`{path}`: name: {name.why}", hint="`qft plan` tells more")
    if not isinstance(name, str):
        raise UsageError(f"`{path}` has no `name`", hint="add a line such as `name: my-run`")
    return name


@contextlib.contextmanager
def run_lock(
    run: RunFolder,
    *,
    timeout_s: float = PROBE_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the run alone; raise Busy if another `qft` drives it."""
    try:
        with locked(run.lock, timeout_s=timeout_s, sleep=sleep):
            yield
    except LockTimeout as error:
        raise RunBusyError(run, error.holder) from error


def is_locked(run: RunFolder) -> bool:
    """Whether a `qft` drives the run at this moment."""
    try:
        with run_lock(run, timeout_s=0.0):
            return False
    except RunBusyError:
        return True
    except OSError:  # a home that cannot be written can be looked at, and is driven by nobody
        return False


class RunBusyError(UsageError):
    """Another `qft` drives the run; a second driver could rent a second machine.

    `holder` is what that process says of itself.
    """

    def __init__(self, run: RunFolder, holder: str) -> None:
        self.holder = holder
        who = f" ({holder})" if holder else ""
        super().__init__(
            f"another `qft` is already driving the run `{run.name}`{who}",
            hint=f"`qft train {run.name}` follows it, `qft down {run.name}` stops it; "
            "another run needs another `name`",
        )


def read_saved_config(run: RunFolder) -> dict[str, object]:
    """The config the run was last started with; empty if it never got that far.

    Raises UsageError if it is damaged: every other run can be listed and released all the same.
    """
    try:
        value = read_json(run.config)
    except ValueError as error:
        raise UsageError(
            f"the run `{run.name}` has a damaged config: {error}",
            hint="`qft ls --all` and `qft down --all` work without it; `--fresh` begins anew",
        ) from error
    return value if isinstance(value, dict) else {}


def environment() -> Mapping[str, str]:
    """The process environment, read at the door only."""
    return os.environ
