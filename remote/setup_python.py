"""The environment in which the trainer runs, made from hashed lock files per CUDA generation."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from remote.errors import Unfit, megabytes
from remote.setup_facts import PYTHON_MAX, PYTHON_MIN, Facts, Python, version_of
from remote.setup_steps import APT, APT_UPDATE, Driver, Step, Want

DRIVER_MIN = {"cpu": (0, 0), "cu128": (525, 60), "cu130": (580, 65)}
"""What each set needs; CUDA 12 runs on every driver since 525, CUDA 13 since 580.65."""
CUDA_OF = {"cu128": (12, 8), "cu130": (13, 0)}
REQUIREMENTS = Path(__file__).with_name("requirements")
LOCK_OF = {"cpu": "cu130"}
"""Without a GPU the same wheels run: the default build for Linux is the one for CUDA."""
DOWNLOAD = "# download: "
ROOM = 3.5
"""What an environment takes at its peak, in sizes of its wheels; 3.0 was measured."""


def requirements(cuda: str) -> str:
    """Read the lock of a set: every package that is installed, with the hashes of its wheels."""
    return (REQUIREMENTS / f"{LOCK_OF.get(cuda, cuda)}.txt").read_text(encoding="utf-8")


def size_bytes(cuda: str) -> int:
    """Say how much disk an environment takes while it is made, from the sizes in its lock."""
    said = requirements(cuda).partition(DOWNLOAD)[2].split(maxsplit=1)[0]
    return round(ROOM * int(said))


def environment(python: Python, cuda: str) -> str:
    """Name the environment: it changes with any requirement and with the interpreter."""
    text = f"{requirements(cuda)}\n{python.version}"
    return f"venv-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def interpreter(facts: Facts, want: Want) -> str:
    """Say which interpreter runs the trainer once the plan is empty, relative to the home."""
    if want.python:
        return want.python
    return f"qft/{environment(fit_python(facts), cuda_for(facts, want))}/bin/python"


def cuda_for(facts: Facts, want: Want) -> str:
    """Choose the requirement set: the newest that driver and size admit, or the one demanded.

    Raises `Unfit` if the one demanded cannot run on the driver, before anything is installed.
    """
    if want.cuda != "auto":
        if offence := mismatch(facts, want, want.cuda):
            raise Unfit([offence], hint="leave the choice to qft, or update the driver")
        return want.cuda
    if want.driver is Driver.NONE:
        return "cpu"
    offences = []
    for cuda in ("cu130", "cu128"):
        offence = mismatch(facts, want, cuda)
        if not offence:
            return cuda
        offences.append(offence)
    raise Unfit(offences, hint="update the driver, or choose another size or image")


def mismatch(facts: Facts, want: Want, cuda: str) -> str:
    """Say why a set cannot run on the machine's driver; empty if it can."""
    if cuda not in DRIVER_MIN:
        return f"there is no requirement set `{cuda}`, only {', '.join(sorted(DRIVER_MIN))}"
    if cuda == "cpu":
        return "" if want.driver is Driver.NONE else "the set `cpu` would leave the GPU unused"
    cap = version_of(want.cuda_max) if want.cuda_max else ()
    if cap and CUDA_OF[cuda] > cap:
        return f"`{cuda}` needs CUDA {dotted(CUDA_OF[cuda])}; this size admits {want.cuda_max}"
    if version_of(facts.driver or "0") < DRIVER_MIN[cuda]:
        return (
            f"`{cuda}` needs a driver of at least {dotted(DRIVER_MIN[cuda])};"
            f" this machine has {facts.driver or 'none that answers'}"
        )
    return ""


def environment_steps(facts: Facts, want: Want, cuda: str) -> list[Step]:
    """List what is needed to make the environment; empty if it is there or not ours to make."""
    if want.python:
        return []
    python = fit_python(facts)
    name = environment(python, cuda)
    if name in facts.venvs:
        return []
    needed = size_bytes(cuda) + want.spare_bytes
    if facts.free_bytes < needed:
        parts = f"environment {megabytes(size_bytes(cuda))}, rest {megabytes(want.spare_bytes)}"
        reason = (
            f"{megabytes(needed)} are needed on the disk of {facts.home or 'its home'} ({parts});"
            f" {megabytes(facts.free_bytes)} are free"
        )
        raise Unfit([reason], hint="choose a bigger disk, or free some space")
    steps = []
    if not python.venv:
        steps.append(
            Step(
                name="install Python's venv",
                command=f"{APT_UPDATE} && {APT} install {python.command}-venv",
                why=f"{python.command} cannot make environments yet",
                timeout_s=900,
                sudo=True,
            )
        )
    steps.append(install_step(python, cuda))
    return steps


def install_step(python: Python, cuda: str) -> Step:
    """Make the environment from its lock: every file is checked, and none is built on the way."""
    folder = f"qft/{environment(python, cuda)}"
    lock = f"{folder}.txt"
    return Step(
        name="make the Python environment",
        # The wheels go beside the environment: a /tmp in memory would not hold them.
        command=f"{python.command} -m venv --clear {folder} && mkdir -p {folder}/wheels"
        f' && TMPDIR="$PWD"/{folder}/wheels {folder}/bin/python -m pip install'
        " --disable-pip-version-check --no-input --no-cache-dir --retries 5"
        f" --require-hashes --only-binary :all: -r {lock}"
        f" && rm -rf {folder}/wheels && sync && touch {folder}/.ready",
        why=f"the trainer needs the tested versions ({cuda})",
        timeout_s=3600,
        files={lock: requirements(cuda)},
    )


def gpu_steps(facts: Facts, want: Want) -> list[Step]:
    """List the last word, a tensor on the GPU, unless it was said since the last boot."""
    python = interpreter(facts, want)
    folder = python.removesuffix("/bin/python") if not want.python else "qft/venv-given"
    seen = f"{facts.boot_id} {facts.driver}"
    if (folder.removeprefix("qft/"), seen) in facts.cuda_seen:
        return []
    return [
        Step(
            name="put a tensor on the GPU",
            command=f"{shlex.quote(python)} -c 'import torch; torch.zeros(1).cuda()'"
            f" && mkdir -p {folder} && printf %s {shlex.quote(seen)} > {folder}/.cuda",
            why="drivers that answer can still fail here, and training must not be the test",
            timeout_s=300,
        )
    ]


def fit_python(facts: Facts) -> Python:
    """Find the interpreter to build from; raises `Unfit` if there is none, or no wheel fits."""
    if facts.arch not in {"x86_64", ""}:
        raise Unfit(
            [f"the tested wheels are for x86_64, and this machine is {facts.arch}"],
            hint="name an interpreter there that has all the trainer needs, as `vm.ssh.python`",
        )
    if facts.python is None:
        found = ", ".join(f"{one.command} {dotted(one.version)}" for one in facts.pythons)
        span = f"{dotted(PYTHON_MIN)} to {dotted(PYTHON_MAX)}"
        raise Unfit(
            [f"no Python of {span} is there, only {found or 'none'}"],
            hint="use an image with one of these, such as Ubuntu 24.04",
        )
    return facts.python


def dotted(version: tuple[int, ...]) -> str:
    """Write a version as people do."""
    return ".".join(map(str, version))
