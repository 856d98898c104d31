"""Generates the hashed lock files of the requirement sets: `make lock`, for maintainers only.

`uv` resolves the short `.in` files once per Python from the index's metadata, so that no wheel is
downloaded. The index is the one that this computer is set up with; no file here names it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote.setup.facts import PYTHON_MAX, PYTHON_MIN
from remote.setup.python_env import ANSWERS, DOWNLOAD, REQUIREMENTS, dotted

PLATFORM = "x86_64-manylinux_2_28"
PYTHONS = tuple((3, minor) for minor in range(PYTHON_MIN[1], PYTHON_MAX[1] + 1))
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
INPUTS = "# inputs: sha256 "
WITH_CUDA = "cu130"
"""The set from which the one without CUDA is made: all but torch's build and CUDA is the same."""
CUDA_ONLY = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names of what torch's build with CUDA needs, and the other does not."""
WHEEL = "# wheel: "


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package at one version, as one Python on our platform installs it."""

    name: str
    version: str
    hashes: frozenset[str]
    """Of every wheel that this Python may install; sdists never count."""
    size_bytes: int
    """The largest of these wheels."""


def main() -> int:
    """Write the lock of every set; raises `SystemExit` if `uv` is missing or finds no solution."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise SystemExit("`uv` is needed to make lock files: python -m pip install uv")
    for source in (*sorted(REQUIREMENTS.glob("cu*.in")), REQUIREMENTS / f"{ANSWERS}.in"):
        found = {python: resolve(uv, source, python) for python in PYTHONS}
        write(source, found)
        if source.stem == WITH_CUDA:
            bare = REQUIREMENTS / "cpu.in"
            wheels = listed(bare.read_text(encoding="utf-8"))
            write(bare, {python: without_cuda(found[python], wheels, python) for python in PYTHONS})
    return 0


def write(source: Path, found: Mapping[tuple[int, int], Sequence[Package]]) -> None:
    """Write the lock beside its source, whole or not at all."""
    target = source.with_suffix(".txt")
    temporary = target.with_suffix(".tmp")
    temporary.write_text(render(source, found), encoding="utf-8")
    temporary.replace(target)
    sys.stderr.write(f"{target.name}: {len(merge(found))} packages\n")


def without_cuda(
    packages: Sequence[Package], wheels: Mapping[tuple[int, int], Package], python: tuple[int, int]
) -> list[Package]:
    """Return the same set with the listed build of torch, and without what only CUDA needs.

    Raises `SystemExit` if the list lacks that Python, or is of another version than the set.
    """
    if python not in wheels:
        raise SystemExit(f"cpu.in lists no wheel for Python {dotted(python)}")
    build = wheels[python]
    kept = []
    for one in packages:
        if one.name == build.name:
            if one.version != build.version.partition("+")[0]:
                raise SystemExit(f"cpu.in lists torch {build.version}, the set has {one.version}")
            kept.append(build)
        elif not one.name.startswith(CUDA_ONLY):
            kept.append(one)
    return kept


def listed(text: str) -> dict[tuple[int, int], Package]:
    """Parse the wheels that a source lists itself, `# wheel: FILE BYTES SHA256`, by Python."""
    found = {}
    for line in text.splitlines():
        fields = line.removeprefix(WHEEL).split()
        if not line.startswith(WHEEL) or len(fields) != 3:
            continue
        name, version, tag, *_ = fields[0].split("-")
        found[3, int(tag.removeprefix("cp3"))] = Package(
            name=name, version=version, hashes=frozenset({fields[2]}), size_bytes=int(fields[1])
        )
    return found


def resolve(uv: str, source: Path, python: tuple[int, int]) -> list[Package]:
    """Resolve with `uv` what the inputs of `source` need on one Python, with its wheels.

    What answers run with is as it was published, not as the trainer is tested with.
    """
    inputs = inputs_of(source)
    pinned = {line.partition("==")[0] for path in inputs for line in path.read_text().splitlines()}
    tested = [
        line
        for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        if line.partition("==")[0] not in pinned and source.stem != ANSWERS
    ]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(tested), encoding="utf-8")
        options = {
            "--constraint": str(constraints),
            "--format": "pylock.toml",
            "--only-binary": ":all:",
            "--python-platform": PLATFORM,
            "--python-version": dotted(python),
        }
        argv = [uv, "pip", "compile", "--quiet", "--no-header", *map(str, inputs)]
        argv += [part for pair in options.items() for part in pair]
        answer = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if answer.returncode:
        raise SystemExit(f"{source.name} cannot be resolved for Python {dotted(python)}: see above")
    return read(tomllib.loads(answer.stdout.decode()))


def read(lock: Mapping[str, Sequence[Mapping[str, object]]]) -> list[Package]:
    """Parse the standard lock format; raises `SystemExit` for a package without a fitting wheel."""
    found = []
    for one in lock["packages"]:
        wheels = one.get("wheels")
        if not isinstance(wheels, list) or not wheels:
            raise SystemExit(f"{one['name']} {one['version']} has no wheel for {PLATFORM}")
        found.append(
            Package(
                name=str(one["name"]),
                version=str(one["version"]),
                hashes=frozenset(wheel["hashes"]["sha256"] for wheel in wheels),
                size_bytes=max(wheel["size"] for wheel in wheels),
            )
        )
    return found


def render(source: Path, found: Mapping[tuple[int, int], Sequence[Package]]) -> str:
    """Format a lock for pip: pins, markers where a Python differs, and one hash a line."""
    inputs = inputs_of(source)
    size_bytes = max(sum(one.size_bytes for one in packages) for packages in found.values())
    first, last = min(found), max(found)
    names = " and ".join(path.name for path in inputs)
    lines = [
        f"# Made by `make lock` from {names}: edit those, not this.",
        f"# For Linux x86_64 with glibc 2.28 or later, CPython {dotted(first)} to {dotted(last)}.",
        f"{DOWNLOAD}{size_bytes} bytes for one machine",
        f"{INPUTS}{digest(inputs)}",
    ]
    for (name, version), (pythons, hashes) in sorted(merge(found).items()):
        marker = "" if pythons == set(found) else f" ; {marker_of(pythons)}"
        parts = [f"{name}=={version}{marker}"]
        parts += [f"--hash=sha256:{one}" for one in sorted(hashes)]
        lines.append(" \\\n    ".join(parts))
    return "\n".join(lines) + "\n"


def merge(
    found: Mapping[tuple[int, int], Sequence[Package]],
) -> dict[tuple[str, str], tuple[set[tuple[int, int]], set[str]]]:
    """Join what the Pythons need: for each pin the Pythons that have it, and every hash."""
    joined: dict[tuple[str, str], tuple[set[tuple[int, int]], set[str]]] = {}
    for python, packages in found.items():
        for one in packages:
            pythons, hashes = joined.setdefault((one.name, one.version), (set(), set()))
            pythons.add(python)
            hashes |= one.hashes
    return joined


def marker_of(pythons: set[tuple[int, int]]) -> str:
    """Return the marker that tells pip which Pythons a line is for."""
    return " or ".join(f'python_version == "{dotted(one)}"' for one in sorted(pythons))


def inputs_of(source: Path) -> list[Path]:
    """Return the short files that a lock is made from."""
    return [source] if source.stem == ANSWERS else [source.with_name("common.in"), source]


def digest(inputs: Sequence[Path]) -> str:
    """Hash the short files, so that a test sees a lock that was not made again."""
    return hashlib.sha256(b"\n".join(path.read_bytes() for path in inputs)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
