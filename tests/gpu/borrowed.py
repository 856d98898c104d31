"""Packages that a card's Python lacks, from a folder beside it: chosen there, packed here.

    python tests/gpu --pack

fills `.gpu/` on a computer with internet. A machine with a card has torch, transformers, PEFT and
accelerate, but often neither bitsandbytes nor pydantic. Each has a part of the folder to itself,
and a part is used only where the Python at hand lacks the package, or has one that is too old.
Of bitsandbytes the library of one CUDA generation is taken (4 MB instead of 130). pydantic's
compiled half is built for one version of Python each, so those of several lie side by side. TRL,
datasets and Liger are there for a comparison only: without them it is left out.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

FOLDER = ".gpu"
CUDA = "130"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PARTS: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "pydantic": (
        "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions",
    ),
    "trl": ("trl",),
    "datasets": ("datasets", "dill", "multiprocess"),
    "liger_kernel": ("liger_kernel",),
}  # fmt: skip
COMPARED = ("trl", "datasets", "liger_kernel")
"""Parts that nothing but a comparison needs; what else they need, such as pandas, stays there."""
LEAST = {"bitsandbytes": (0, 50), "pydantic": (2, 12)}
"""The lower bounds of pyproject.toml."""
GIVEN = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
"""What has to be there: too large to bring along."""
BYTES_MAX = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the processes of the proof get on their path, and what has to be said of it."""

    paths: tuple[Path, ...]
    messages: tuple[str, ...]
    lacking: tuple[str, ...]  # without which no training can begin


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package of this Python, None if it cannot be imported."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name) if importlib.util.find_spec(name) else None
        except metadata.PackageNotFoundError:
            found[name] = None  # transformers asks for the version, too
    return found


def choose(found: Mapping[str, str | None], folder: Path, *, suffix: str | None = None) -> Choice:
    """Decide which parts of `folder` a Python that has `found` needs.

    `suffix` is that of compiled modules of this Python, such as `.cpython-312-x86_64-linux-gnu.so`.
    """
    suffix = suffix or importlib.machinery.EXTENSION_SUFFIXES[0]
    paths: list[Path] = []
    messages: list[str] = []
    lacking = [name for name in GIVEN if found.get(name) is None]
    for name, least in LEAST.items():
        version = found.get(name)
        if version is not None and release(version) >= least:
            continue
        has = "is missing" if version is None else f"is {version}, older than {_dotted(least)}"
        part = folder / name
        problem = unusable(part, name, suffix)
        if problem is None:
            paths.append(part)
            messages.append(f"{name} {has} in this Python: taken from {part}")
            continue
        messages.append(
            f"{name} {has} in this Python, and {problem}; `python tests/gpu --pack` on a computer "
            f"with internet fills {folder.name}/, to be brought along"
        )
        lacking.append(name)
    for name in COMPARED:
        if found.get(name) is None and unusable(folder / name, name, suffix) is None:
            paths.append(folder / name)
            messages.append(f"{name} is missing in this Python: taken from {folder / name}")
    return Choice(paths=tuple(paths), messages=tuple(messages), lacking=tuple(lacking))


def unusable(part: Path, name: str, suffix: str) -> str | None:
    """Say why a part of the folder cannot be used by this Python, None if it can."""
    if not (part / name / "__init__.py").is_file():
        return f"there is no {part}"
    if name == "pydantic" and not (part / "pydantic_core" / f"_pydantic_core{suffix}").is_file():
        return f"{part} has no compiled half for this Python ({suffix})"
    return None


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, `(0, 50)` of `0.50.2.dev1`."""
    return tuple(int(one) for one in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def environment(
    base: Mapping[str, str], choice: Choice, *, root: Path, work: Path
) -> dict[str, str]:
    """Return the environment of the proof's processes: one card, no network, our code in front.

    What they store or compile for later starts lies below `work`: nothing is there from before.
    """
    paths = [str(root), str(root / "tests"), *map(str, choice.paths)]
    if base.get("PYTHONPATH"):
        paths.append(base["PYTHONPATH"])
    cards = base.get("CUDA_VISIBLE_DEVICES", "0")  # the comparison would use all that it sees
    return {
        **base,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": cards.split(",")[0],
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "huggingface"),
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def pack(folder: Path, *, on_message: Callable[[str], None], cuda: str = CUDA) -> int:
    """Fill `folder` anew, whole or not at all; return how many bytes it has.

    Raises:
        OSError, subprocess.CalledProcessError: a package can be neither copied nor downloaded.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, names in PARTS.items():
        for name in names:
            requirement = f"pydantic-core=={core_of(partial)}" if name == "pydantic_core" else name
            try:
                take(name, requirement, partial / part, wanted=lambda file: needed(file, cuda=cuda))
            except subprocess.CalledProcessError as error:
                if part not in COMPARED:
                    raise
                on_message(f"no {name} to compare with: {error.stderr.strip()[-200:]}")
    for python in PYTHONS:
        message = add_core(partial / "pydantic", python=python, version=core_of(partial))
        if message:
            on_message(message)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def core_of(folder: Path) -> str:
    """Return the one version of its compiled half that the pydantic in `folder` works with."""
    facts = next((folder / "pydantic").glob("pydantic-*.dist-info")) / "METADATA"
    found = re.search(r"^Requires-Dist: pydantic-core==(\S+)", facts.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{facts} names no version of pydantic-core")
    return found[1]


def needed(file: str, *, cuda: str) -> bool:
    """Tell whether a file of a wheel is brought along: no library of other accelerators."""
    name = file.rpartition("/")[2]
    if (
        file.startswith("..")
        or {"__pycache__", "tests"} & {*file.split("/")}
        or name in {"RECORD", "direct_url.json"}
    ):
        return False
    if not name.startswith("libbitsandbytes_"):
        return True
    return name.startswith(("libbitsandbytes_cpu.", f"libbitsandbytes_cuda{cuda}."))


def take(name: str, requirement: str, target: Path, *, wanted: Callable[[str], bool]) -> None:
    """Copy an installed package to `target`, or download `requirement` and unpack it there."""
    try:
        files = metadata.distribution(name).files
    except metadata.PackageNotFoundError:
        files = None
    if files is None:
        unpack(download(requirement), target, wanted=wanted)
        return
    for file in files:
        if wanted(str(file)):
            place = target / str(file)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), place)


def add_core(part: Path, *, python: str, version: str) -> str | None:
    """Add pydantic's compiled half for one Python; say what went wrong, None if nothing did."""
    tag = "cpython-" + python.replace(".", "")
    if any((part / "pydantic_core").glob(f"_pydantic_core.{tag}-*.so")):
        return None
    try:
        wheel = download(f"pydantic-core=={version}", python)
    except subprocess.CalledProcessError as error:
        return f"no pydantic-core {version} for Python {python}: {error.stderr.strip()[-200:]}"
    unpack(wheel, part, wanted=lambda file: file.endswith(".so"))
    return None


def download(requirement: str, python: str | None = None) -> Path:
    """Fetch one wheel with pip, for this Python or another one, and return where it lies."""
    target = Path(tempfile.mkdtemp(prefix="qft-gpu-wheel-"))
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--dest", str(target), requirement,
    ]  # fmt: skip
    if python is not None:
        command += ["--python-version", python, "--implementation", "cp"]
        for old in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
            command += ["--platform", f"{old}_{platform.machine()}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(target.glob("*.whl"))


def unpack(wheel: Path, target: Path, *, wanted: Callable[[str], bool]) -> None:
    """Unpack the wanted files of a wheel, and remove it."""
    with zipfile.ZipFile(wheel) as archive:
        names: Sequence[str] = [name for name in archive.namelist() if wanted(name)]
        archive.extractall(target, members=names)
    shutil.rmtree(wheel.parent)
