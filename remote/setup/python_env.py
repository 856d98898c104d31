"""Plans the trainer's Python environment, made from hashed lock files per CUDA generation."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from remote.clean_environment import CLEAR_VARIABLES, PRIVATE_UMASK
from remote.errors import Unfit, megabytes
from remote.on_machine import pip_settings
from remote.setup.facts import PYTHON_MAX, PYTHON_MIN, Facts, PythonInterpreter, version_of
from remote.setup.steps import DriverKind, SetupGoal, Step, with_apt_functions

DRIVER_MIN = {"cpu": (0, 0), "cu128": (525, 60), "cu130": (580, 65)}
"""The driver that each requirement set needs; CUDA 12 runs since 525.60, CUDA 13 since 580.65."""
CUDA_OF = {"cu128": (12, 8), "cu130": (13, 0)}
REQUIREMENTS = Path(__file__).with_name("requirements")
ANSWERS = "answers"
"""The requirement set of the environment that answers which are code run in."""
FALLBACK = {"cpu": "cu130"}
"""The set to install where the machine's index does not have torch's build without CUDA."""
SETTINGS = "qft/setup/pip_settings.py"
"""Where the script is put that reads pip's settings there."""
COUNTED = "qft: {count} packages"
"""Printed before pip begins, so that `progress` knows the total."""
NO_SMALL_BUILD = (
    "qft: no index that pip is set up with there has torch without CUDA, so that the build with"
    " CUDA is fetched, which is ten times as big"
)
DOWNLOAD = "# download: "
GLIBC_MIN = (2, 28)
"""The C library that torch's wheels need: their tag is `manylinux_2_28`."""
PEAK_DISK_FACTOR = 3.5
"""Peak disk use of making an environment, as a multiple of its wheels; 3.0 was measured."""


def requirements(cuda: str) -> str:
    """Return the lock of a set: every package that is installed, with the hashes of its wheels."""
    return (REQUIREMENTS / f"{cuda}.txt").read_text(encoding="utf-8")


def size_bytes(cuda: str) -> int:
    """Return the peak disk use of making an environment, from the sizes in its lock."""
    wheel_bytes = requirements(cuda).partition(DOWNLOAD)[2].split(maxsplit=1)[0]
    return round(PEAK_DISK_FACTOR * int(wheel_bytes))


def environment(python: PythonInterpreter, cuda: str) -> str:
    """Return the environment's name: a hash of all requirements and the interpreter's version."""
    text = f"{requirements(cuda)}\n{python.version}"
    return f"venv-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def interpreter(facts: Facts, goal: SetupGoal) -> str:
    """Return the interpreter that runs the trainer once the plan is empty, relative to the home."""
    if goal.python:
        return goal.python
    return f"qft/{environment(fit_python(facts), cuda_for(facts, goal))}/bin/python"


def cuda_for(facts: Facts, goal: SetupGoal) -> str:
    """Choose the requirement set: the newest that driver and size admit, or the one of the goal.

    Raises `Unfit` if it cannot run on the driver, before anything is installed.
    """
    if goal.cuda != "auto":
        if offence := mismatch(facts, goal, goal.cuda):
            raise Unfit([offence], hint="leave the choice to qft, or update the driver")
        return goal.cuda
    if goal.driver is DriverKind.NONE:
        return "cpu"
    offences = []
    for cuda in ("cu130", "cu128"):
        offence = mismatch(facts, goal, cuda)
        if not offence:
            return cuda
        offences.append(offence)
    raise Unfit(offences, hint="update the driver, or choose another size or image")


def mismatch(facts: Facts, goal: SetupGoal, cuda: str) -> str:
    """Return why a set cannot run on the machine's driver; empty if it can."""
    if cuda not in DRIVER_MIN:
        return f"there is no requirement set `{cuda}`, only {', '.join(sorted(DRIVER_MIN))}"
    if cuda == "cpu":
        return "" if goal.driver is DriverKind.NONE else "the set `cpu` would leave the GPU unused"
    cap = version_of(goal.cuda_max) if goal.cuda_max else ()
    if cap and CUDA_OF[cuda] > cap:
        return f"`{cuda}` needs CUDA {dotted(CUDA_OF[cuda])}; this size admits {goal.cuda_max}"
    if version_of(facts.driver or "0") < DRIVER_MIN[cuda]:
        return (
            f"`{cuda}` needs a driver of at least {dotted(DRIVER_MIN[cuda])};"
            f" this machine has {facts.driver or 'none that answers'}"
        )
    return ""


def environment_steps(facts: Facts, goal: SetupGoal, cuda: str) -> list[Step]:
    """Plan the steps that make the environment; empty if it exists or is the user's own."""
    if goal.python:
        return []
    python = fit_python(facts)
    name = environment(python, cuda)
    if name in facts.venvs:
        return []
    require_room(facts, goal, size_bytes(cuda))
    return [*venv_steps(python), install_step(python, cuda)]


def require_room(facts: Facts, goal: SetupGoal, environment_bytes: int) -> None:
    """Raise `Unfit` unless an environment of that size fits on the disk beside all else."""
    needed = environment_bytes + goal.spare_bytes
    if facts.free_bytes < needed:
        parts = f"environment {megabytes(environment_bytes)}, rest {megabytes(goal.spare_bytes)}"
        reason = (
            f"{megabytes(needed)} are needed on the disk of {facts.home or 'its home'} ({parts});"
            f" {megabytes(facts.free_bytes)} are free"
        )
        raise Unfit([reason], hint="choose a bigger disk, or free some space")


def venv_steps(python: PythonInterpreter) -> list[Step]:
    """Plan to install the part of Python that makes environments, where it is missing."""
    if python.venv:
        return []
    return [
        Step(
            name="install Python's venv",
            command=with_apt_functions(f"qft_update && qft_install {python.command}-venv"),
            why=f"{python.command} cannot make environments yet",
            timeout_s=900,
            sudo=True,
        )
    ]


def install_step(python: PythonInterpreter, cuda: str) -> Step:
    """Return the step that installs the lock: every wheel is verified, and nothing is built."""
    folder = f"qft/{environment(python, cuda)}"
    lock, more = f"{folder}.txt", f"{folder}.full.txt"
    full = FALLBACK.get(cuda, "")
    install = pip_install(folder)
    count = len(pins(requirements(cuda), python))
    begin = f"echo {shlex.quote(COUNTED.format(count=count))}"
    if full:
        # Where no index of the machine's has the smaller build, pip says so before it fetches any.
        again = COUNTED.format(count=len(pins(requirements(full), python)))
        fetch = (
            f"{{ {{ {install} -r {lock} 2>&1; echo $? > {folder}/code; }} | tee {folder}/log;"
            f' code=$(cat {folder}/code); [ "$code" = 0 ] ||'
            f" {{ grep -q 'No matching distribution found for torch==' {folder}/log"
            f" && echo {shlex.quote(NO_SMALL_BUILD)} && echo {shlex.quote(again)}"
            f" && {install} -r {more}; }}; }}"
        )
    else:
        fetch = f"{install} -r {lock}"
    return Step(
        name="make the Python environment",
        command=f"{begin_environment(python, folder)} && {begin} && {fetch}"
        f" && rm -rf {folder}/wheels {folder}/log {folder}/code && sync && touch {folder}/.ready",
        why=f"the trainer needs the tested versions ({cuda})",
        timeout_s=3600,
        files={
            lock: requirements(cuda),
            **({more: requirements(full)} if full else {}),
            SETTINGS: Path(pip_settings.__file__).read_text(encoding="utf-8"),
        },
    )


def begin_environment(python: PythonInterpreter, folder: str) -> str:
    """Return the commands that make an empty environment, for `pip_install` to fill.

    Of the machine's own settings only those apply that say where pip finds packages:
    `clean_environment` unsets variables, and pip reads none of its configuration files
    (`--isolated` alone would leave the system's files and `PIP_CONFIG_FILE`).
    """
    return (
        f"{PRIVATE_UMASK}set -f; IFS='\n'; set -- $({python.command} -I -S {SETTINGS});"
        f" unset IFS; set +f; {CLEAR_VARIABLES}export PIP_CONFIG_FILE=/dev/null PYTHONNOUSERSITE=1;"
        f" {python.command} -m venv --clear {folder} && mkdir -p {folder}/wheels"
        # The wheels go beside the environment: a /tmp in memory would not hold them.
        f' && {{ TMPDIR="$PWD"/{folder}/wheels; export TMPDIR; }}'
    )


def pip_install(folder: str) -> str:
    """Return the command that installs into an environment, without the lock's name at its end."""
    return (
        f"{folder}/bin/python -m pip install --isolated"
        ' --disable-pip-version-check --no-input --no-cache-dir --retries 5 "$@"'
        " --require-hashes --only-binary :all:"
    )


def pins(text: str, python: PythonInterpreter) -> list[str]:
    """Return the names of the packages that a lock installs on one Python."""
    marked = f'python_version == "{dotted(python.version)}"'
    lines = [line for line in text.splitlines() if line[:1].isalnum()]
    return [
        line.partition("==")[0]
        for line in lines
        if ";" not in line or marked in line.partition(";")[2]
    ]


def gpu_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan the final check, a tensor on the GPU, unless it succeeded since the last boot."""
    python = interpreter(facts, goal)
    folder = python.removesuffix("/bin/python") if not goal.python else "qft/venv-given"
    seen = f"{facts.boot_id} {facts.driver}"
    if (folder.removeprefix("qft/"), seen) in facts.cuda_seen:
        return []
    return [
        Step(
            name="put a tensor on the GPU",
            command=f"{PRIVATE_UMASK}{CLEAR_VARIABLES}{shlex.quote(python)} -c"
            f" {shlex.quote(tensor_program(goal.gpu_count))}"
            f" && mkdir -p {folder} && printf %s {shlex.quote(seen)} > {folder}/.cuda",
            why="drivers that answer can still fail here, and training must not be the test",
            timeout_s=300,
        )
    ]


def tensor_program(gpu_count: int) -> str:
    """Return the Python that puts a tensor on the first cards; it fails if there are fewer."""
    if gpu_count == 1:
        return "import torch; torch.zeros(1).cuda()"
    return f"import torch; [torch.zeros(1).cuda(card) for card in range({gpu_count})]"


def fit_python(facts: Facts) -> PythonInterpreter:
    """Return the interpreter to build from; raises `Unfit` if there is none, or no wheel fits."""
    if facts.arch not in {"x86_64", ""}:
        raise Unfit(
            [f"the tested wheels are for x86_64, and this machine is {facts.arch}"],
            hint="name an interpreter there that has all the trainer needs, as `vm.ssh.python`",
        )
    if facts.libc and (facts.libc[0] != "glibc" or version_of(facts.libc[1]) < GLIBC_MIN):
        have = " ".join(facts.libc)
        raise Unfit(
            [f"the tested wheels need glibc {dotted(GLIBC_MIN)}, and this system has {have}"],
            hint="name an interpreter there that has all the trainer needs, as `vm.ssh.python`",
        )
    if facts.python is None:
        found = ", ".join(str(one) for one in facts.pythons)
        span = f"{dotted(PYTHON_MIN)} to {dotted(PYTHON_MAX)}"
        raise Unfit(
            [f"no Python of {span} is there, only {found or 'none'}"],
            hint="use an image with one of these, such as Ubuntu 24.04, or name an interpreter"
            " there that has all the trainer needs, as `vm.ssh.python`",
        )
    return facts.python


def dotted(version: tuple[int, ...]) -> str:
    """Format a version, such as `3.12`."""
    return ".".join(map(str, version))
