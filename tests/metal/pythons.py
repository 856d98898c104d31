"""The machine's Python: environments are made and filled without fetching gigabytes of wheels.

What an environment is filled with is read from the very file that pip is given, and checked as pip
checks it. Programs in a filled environment run in the interpreter of the tests.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from metal.state import VENV, Store

CUDA_OF_TORCH = {"2.13": "13.0", "2.10": "12.8"}
"""For which CUDA a version's wheel on the index is built, if the file names no runtime."""
NO_ENSUREPIP = f"""The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.

    apt install {VENV}
"""
WRAPPER = """#!/bin/sh
case "$1 $2" in "-m pip") shift 2; exec {programs}/pip {folder} "$@" ;; esac
if [ ! -f {folder}/installed.json ]; then exec {real} -S "$@"; fi
if [ "$1" = -c ]; then PYTHONPATH={folder}/played exec {real} "$@"; fi
unset PYTHONPATH
exec {real} "$@"
"""
TORCH = """import sys
sys.path.insert(0, {tests!r})
from metal.pythons import Torch
zeros = Torch({directory!r}, {folder!r}).zeros
"""


def venv(store: Store, arguments: list[str]) -> int:
    """Make an environment in which pip is the played one."""
    if VENV not in store.read().packages:
        sys.stdout.write(NO_ENSUREPIP)
        return 1
    folder = Path(arguments[-1]).absolute()
    if "--clear" in arguments:
        shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "played").mkdir()
    tests = str(Path(__file__).resolve().parents[1])
    torch = TORCH.format(tests=tests, directory=store.directory, folder=str(folder))
    (folder / "played" / "torch.py").write_text(torch)
    wrapper = folder / "bin" / "python"
    wrapper.write_text(
        WRAPPER.format(programs=f"{store.directory}/bin", folder=folder, real=sys.executable)
    )
    wrapper.chmod(0o755)
    with store.change() as state:
        state.done.append(f"python -m venv {folder.name}")
    return 0


def pip(store: Store, arguments: list[str]) -> int:
    """Read the requirements as pip does, refuse what it refuses, remember what was installed."""
    folder = Path(arguments[0])
    source = Path(arguments[arguments.index("-r") + 1])
    wanted = read(source.read_text(encoding="utf-8"))
    hashed = "--require-hashes" in arguments or any(hashes for _, hashes in wanted.values())
    for name, (version, hashes) in wanted.items():
        if hashed and not hashes:
            sys.stderr.write(
                "ERROR: Hashes are required in --require-hashes mode, but they are missing from"
                f" some requirements. Here is a list of those requirements:\n    {name}\n"
            )
            return 1
        if hashed and not version:
            sys.stderr.write(
                "ERROR: In --require-hashes mode, all requirements must have their versions pinned"
                f" with ==. These do not:\n    {name}\n"
            )
            return 1
    state = store.read()
    first = next(iter(wanted))
    if not state.outbound:
        store.nap(90)
        sys.stderr.write(
            f"WARNING: Retrying (Retry(total=0)) after connection broken by"
            " 'ConnectTimeoutError(<HTTPSConnection>, 'Connection to an.index timed out. (connect"
            f" timeout=15)')': /simple/{first}/\nERROR: Could not find a version that satisfies the"
            f" requirement {first}=={wanted[first][0]} (from versions: none)\n"
            f"ERROR: No matching distribution found for {first}=={wanted[first][0]}\n"
        )
        return 1
    store.nap(state.pip_s * state.pace)
    with store.change() as state:
        state.used_gb += 8
        state.done.append(f"pip install {len(wanted)} packages")
    versions = {name: version for name, (version, _) in wanted.items()}
    temporary = folder / "installed.new"
    temporary.write_text(json.dumps({"cuda": cuda_of(versions), "packages": versions}))
    temporary.replace(folder / "installed.json")
    sys.stdout.write(f"Successfully installed {len(wanted)} packages\n")
    return 0


def read(text: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        requirement = line.partition(" #")[0].strip()
        if not requirement or requirement[0] in "#-":
            continue
        hashes = re.findall(r"--hash=(\S+)", requirement)
        demand = re.sub(r"\s--hash=\S+", "", requirement).replace(" ", "")
        if ";" in demand:
            raise ValueError(f"a marker, which the played pip does not know: {demand}")
        name, _, version = demand.partition("==")
        found[re.split(r"[<>=!~\[]", name)[0].lower()] = (version, hashes)
    return found


def cuda_of(versions: dict[str, str]) -> str:
    """For which CUDA the wheels are: that of the runtime among them, else torch's default."""
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        if name in versions:
            return ".".join(versions[name].split(".")[:2])
    return CUDA_OF_TORCH[".".join(versions["torch"].split(".")[:2])]


class Torch:
    """What `import torch` means in `python -c`: one tensor, that reaches the card or does not."""

    def __init__(self, directory: str, folder: str) -> None:
        self._store = Store(directory)
        installed = json.loads((Path(folder) / "installed.json").read_text())
        if "torch" not in installed["packages"]:
            raise ModuleNotFoundError("No module named 'torch'")
        self._cuda = tuple(int(part) for part in installed["cuda"].split("."))

    def zeros(self, count: int) -> Torch:
        """A tensor, on the processor so far."""
        del count
        return self

    def cuda(self) -> Torch:
        """Move it to the card; raises RuntimeError in torch's words."""
        from metal.gpu import cuda_trouble

        message = cuda_trouble(self._store, self._cuda)
        if message:
            raise RuntimeError(message)
        return self
