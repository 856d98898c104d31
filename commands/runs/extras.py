"""Says which packages of an extra this computer lacks, before anything is rented or loaded.

`pip install qft` brings what it takes to rent and to watch; an extra brings what it takes to train
here. What an extra holds, and from which version, is read where it is declared.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from commands.runs.config import RunConfig
from commands.ui.errors import UsageError
from infra.durable import read_json, write_json
from trainer.eval_tables.loss import LossEvalTable
from trainer.eval_tables.text import PACKAGES, AnswerFields
from trainer.method_table import OptimizerKind, Quant

MODULES = {"scikit-learn": "sklearn", "mlflow-skinny": "mlflow"}
"""Packages whose module has another name."""
LOADED = ("torch",)
"""What is loaded once to see whether it can be: it hangs on libraries of the system."""
LOAD_S = 120.0
READS = ("torch", "transformers", "safetensors", "numpy")
LEARNS = (*READS, "peft", "accelerate")
"""What every training here imports; quantised bases and scores need more."""
REHEARSES = ("asyncssh", *LEARNS, "bitsandbytes", "scikit-learn")
"""What `qft init`'s run.yaml needs for its rehearsal."""


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A package that cannot be used as it is."""

    package: str
    extra: str
    problem: str
    broken: bool = False
    """Whether it is installed in a version that would do, so that installing changes nothing."""

    def __str__(self) -> str:
        return f"`{self.package}` {self.problem}"


def needed_to_train(config: RunConfig) -> tuple[str, ...]:
    """The packages that a training by this config imports."""
    eight_bit = config.method.optimizer is not OptimizerKind.ADAMW
    quantised = config.method.storage is not Quant.NONE
    more = ("bitsandbytes",) * (eight_bit or quantised)
    return (*LEARNS, *more, *_needed_to_score(config))


def _needed_to_score(config: RunConfig) -> tuple[str, ...]:
    """The packages that scoring by this config imports, on top of those that train."""
    table = config.scored
    if table is None or isinstance(table, LossEvalTable):
        return ()
    measures = table.measures if isinstance(table, AnswerFields) else []
    return ("scikit-learn", *(package for name in measures for package in PACKAGES.get(name, ())))


def needed_here(config: RunConfig) -> tuple[str, ...]:
    """The packages that `qft run` needs on this computer: none where a machine is elsewhere."""
    if config.vm.provider != "local":
        return ()
    return ("asyncssh", *needed_to_train(config))


def demand(packages: Iterable[str], purpose: str, home: Path) -> None:
    """Raise UsageError with every package that is missing, too old or broken, and what to type."""
    lacks = missing(packages, home)
    if lacks:
        raise UsageError(
            f"{purpose} needs packages that this computer lacks; nothing was rented or loaded",
            problems=[str(lack) for lack in lacks],
            hint=remedy(lacks),
        )


def missing_packages_text(packages: Iterable[str]) -> list[str]:
    """What a training on this computer lacks, in a sentence with what to type; none if nothing."""
    lacks = missing(packages)
    if not lacks:
        return []
    names = ", ".join(f"`{lack.package}`" for lack in lacks)
    return [f"training on this computer needs {names}, which it lacks: {remedy(lacks)}"]


def missing(packages: Iterable[str], home: Path | None = None) -> list[Lack]:
    """Return what cannot be used of the packages; one that is there is loaded once, if at all.

    With `home`, what could be loaded is remembered there until it changes; without, it is not
    loaded.
    """
    declared = _declared()
    found: list[Lack] = []
    for package in dict.fromkeys(packages):
        extra, least = declared.get(package, ("train", ()))
        problem, broken = _problem(package, least, home)
        if problem:
            found.append(Lack(package=package, extra=extra, problem=problem, broken=broken))
    return found


def remedy(lacks: Sequence[Lack]) -> str:
    """What to type, for the environment that runs this `qft`."""
    wanted = sorted({lack.extra for lack in lacks if not lack.broken})
    broken = [lack.package for lack in lacks if lack.broken]
    lines = []
    if wanted:
        lines.append(f"`{_pip()} install {_named(wanted)}`")
    if broken:
        lines.append(f"`{_pip()} install --force-reinstall {' '.join(broken)}`")
    return ", then ".join(lines)


def _pip() -> str:
    """The pip of this interpreter: another one would install for another Python."""
    first = shutil.which("pip")
    if first is not None and Path(first).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"


def _named(extras: Sequence[str]) -> str:
    """How pip is told of an extra: by name where qft is installed, by folder in a checkout."""
    wanted = f"[{','.join(extras)}]"
    try:
        metadata.distribution("qft")
    except metadata.PackageNotFoundError:
        return f"-e {shlex.quote(f'{_root()}{wanted}')}"
    return f"'qft{wanted}'"


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _declared() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every package of an extra, with the extra and the least version, as qft declares them."""
    found = {}
    for extra, requirements in _extras().items():
        for line in requirements:
            name = re.match(r"[\w.-]+", line)
            least = re.search(r">=\s*([\d.]+)", line)
            if name is not None:
                found[name[0]] = (extra, _version(least[1]) if least else ())
    return found


def _extras() -> Mapping[str, list[str]]:
    """The requirements of the extras that a user may want: of this checkout, or as installed."""
    table = _root() / "pyproject.toml"
    text = table.read_text(encoding="utf-8") if table.is_file() else ""
    project: dict[str, Any] = tomllib.loads(text).get("project", {})
    if project.get("name") == "qft":  # installed, another project's may lie there
        extras: dict[str, list[str]] = project["optional-dependencies"]
        return {name: lines for name, lines in extras.items() if name != "dev"}
    try:
        lines = metadata.requires("qft") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if extra is not None and extra[1] != "dev":
            found.setdefault(extra[1], []).append(line)
    return found


def _version(text: str) -> tuple[int, ...]:
    """The release numbers of a version, without what marks a build or a candidate."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def _problem(package: str, least: tuple[int, ...], home: Path | None) -> tuple[str, bool]:
    """What is wrong with a package, and whether it is one that is there; empty if nothing is."""
    spec = _spec(MODULES.get(package, package))
    if spec is None:
        return "is not installed", False
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        version = ""
    if version and least and _version(version) < least:
        return f"{version} is older than {'.'.join(map(str, least))}", False
    if package == "bitsandbytes" and not _library_of(spec):
        return f"{version} has no library for this computer in it", True
    if package in LOADED and home is not None:
        trouble = _loads(package, spec, version, home / "cache" / "loaded.json")
        return (f"{version} cannot be loaded: {trouble}", True) if trouble else ("", False)
    return "", False


def _spec(module: str) -> ModuleSpec | None:
    """Where a module lies; None if there is none, whatever keeps it from being found."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _library_of(spec: ModuleSpec) -> bool:
    """Whether a package carries its compiled part."""
    places = [Path(place) for place in spec.submodule_search_locations or []]
    return any(any(place.glob("libbitsandbytes*")) for place in places)


def _loads(module: str, spec: ModuleSpec, version: str, memory: Path) -> str:
    """Load a module in another process; return what went wrong, empty if nothing did.

    That takes a second or two, so a success is remembered until the module changes.
    """
    origin = Path(spec.origin) if spec.origin else None
    stamp = origin.stat().st_mtime_ns if origin and origin.exists() else 0
    mark = [sys.executable, version, str(origin), stamp]
    remembered = _remembered(memory)
    if remembered.get(module) == mark:
        return ""
    argv = [sys.executable, "-P", "-c", f"import {module}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LOAD_S)
    except subprocess.TimeoutExpired:
        return ""  # a busy computer; whoever needs it will wait, or tell
    if done.returncode:
        output = done.stderr.strip().splitlines()
        return output[-1] if output else f"the import ended with exit code {done.returncode}"
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {**remembered, module: mark})
    except OSError:
        return ""  # no room to remember it: it is loaded again the next time
    return ""


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        remembered = read_json(memory)
    except (ValueError, OSError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
