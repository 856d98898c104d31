"""Finds the adapter that a run goes on from, checks it before anything is rented, and keeps a copy.

`method.from` names a directory, a finished run of this computer, or an adapter on a hub, which is
fetched here: the machine gets files and no token. The run keeps the copy that it began with.
"""

from __future__ import annotations

import difflib
import re
import shutil
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import NoReturn

from commands.runs import python_program
from commands.runs.base_tensors import adapter_problem
from commands.runs.config import LoadedConfig
from commands.runs.config_diff import is_bound
from commands.runs.extras import demand
from commands.runs.find_config import reopen
from commands.runs.home import RUN_NAME, all_runs, environment, read_saved_config, run_folder
from commands.ui.errors import HostError, UsageError
from infra.run.fold import fold
from infra.run.journal import read
from trainer import hub
from trainer.adapters.parent import FILES, inherit, read_parent, require_base_named
from trainer.adapters.settings import CONFIG
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode

KEPT = "parent"
"""The folder of the copy, beside the config that goes to the machine."""
REVISION = re.compile(r"\w[\w./-]{0,99}", re.ASCII)


def resolve_parent(
    loaded: LoadedConfig, home: Path, *, fresh: bool = False
) -> tuple[LoadedConfig, Path | None]:
    """Return the config with rank, alpha, layers and kind of the adapter in `method.from`.

    Also returns the directory of the adapter: the run's own copy once it was trained from that.

    Raises:
        UsageError: there is no such adapter, or it cannot be trained further with this config.
        HostError: it is on a hub, which was not reached.
    """
    name = loaded.config.method.parent
    if name is None:
        return loaded, None
    directory = None if fresh else _kept(loaded, home)
    directory = directory or _locate(name, loaded, home)
    config = loaded.config
    try:
        parent = read_parent(directory)
        if loaded.model_folder is None:
            require_base_named(parent, config.model.id)
        elif problem := adapter_problem(parent, loaded.model_folder):
            _refuse(problem)
        method = inherit(config.method, parent)
    except ConfigError as error:
        raise UsageError(
            f"the run cannot go on from `{name}`; nothing was rented",
            problems=error.problems,
            hint="`docs/methods.md` says which adapters can be trained further",
        ) from error
    return replace(loaded, config=config.model_copy(update={"method": method})), directory


def _refuse(reason: str) -> NoReturn:
    raise ConfigError(reason)


def keep_parent(directory: Path, folder: Path) -> None:
    """Copy the files of the adapter that are read to `folder`, where they stay for the run."""
    target = folder / KEPT
    if directory == target:
        return
    new = folder / f".{KEPT}.new"
    for leftover in (new, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir(parents=True)
    for name in FILES:
        if (directory / name).is_file():
            shutil.copyfile(directory / name, new / name)
    new.rename(target)


def kept_parent(folder: Path) -> Path | None:
    """Return the copy of the adapter that a run goes on from; None if it has none."""
    return folder / KEPT if (folder / KEPT).is_dir() else None


def _kept(loaded: LoadedConfig, home: Path) -> Path | None:
    """Return the copy of a run that has trained from it already; None if it may be another one."""
    folder = run_folder(home, loaded.config.name)
    if not folder.exists() or not is_bound(fold(read(folder.journal))):
        return None
    config = read_saved_config(folder).get("config")
    method = config.get("method") if isinstance(config, dict) else None
    same = isinstance(method, dict) and method.get("from") == loaded.config.method.parent
    return kept_parent(folder.payload) if same else None


def _locate(name: str, loaded: LoadedConfig, home: Path) -> Path:
    """Return the directory of the adapter called `name`: a directory, a run's, or a hub's."""
    directory = loaded.folder / Path(name).expanduser()
    if directory.is_dir():
        within = directory / "adapter"  # of the folder with all results of a run
        return within if within.is_dir() and not (directory / CONFIG).is_file() else directory
    if RUN_NAME.fullmatch(name) and run_folder(home, name).exists():
        adapter = reopen(run_folder(home, name)).out / "adapter"
        if not adapter.is_dir():
            raise UsageError(
                f"method.from: the adapter of the run `{name}` is not on this computer",
                hint=f"`qft fetch {name}` brings it; `qft status {name}` shows how far it is",
            )
        return adapter
    repository, _, revision = name.partition("@")
    if "/" in repository and hub.is_hub_id(repository):
        return _fetch(repository, revision or "main", home)
    runs = [run.name for run in all_runs(home)]
    near = difflib.get_close_matches(name, runs, n=1)
    raise UsageError(
        f"method.from: there is no directory and no run `{name}`"
        + (f"; did you mean the run `{near[0]}`?" if near else ""),
        hint=f"name a directory beside {loaded.path.name}, a finished run (`qft ls`), or "
        "OWNER/NAME[@REVISION] on a hub",
    )


def _fetch(repository: str, revision: str, home: Path) -> Path:
    """Fetch an adapter from the hub into the cache of its library; return its directory."""
    if not REVISION.fullmatch(revision):
        raise UsageError(
            f"method.from: `{revision}` is no revision", hint="a branch, a tag or a commit is one"
        )
    demand(("huggingface_hub",), "an adapter on a hub", home)
    words = ["fetch-adapter", "--adapter", repository, "--revision", revision]
    done = python_program.start("trainer", words, around=environment(), stdout=PIPE, stderr=PIPE)
    if done.returncode == 0:
        return Path(done.stdout.strip().splitlines()[-1])
    error = HostError if done.returncode == ExitCode.FAILED_IO else UsageError
    raise error(
        f"method.from: `{repository}` was not fetched; nothing was rented",
        problems=(done.stderr or "").strip().splitlines()[-3:],
        hint="it is taken for a name on a hub, since there is no such directory here",
    )
