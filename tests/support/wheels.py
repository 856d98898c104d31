"""A lock of one small package, and a machine whose real pip is set up to find it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path

LOCK = """# download: 1 bytes
qft_probe==1.0 \\
    --hash=sha256:{sha256}
"""


def make_wheel_dir(folder: Path, *, sets: tuple[str, ...] = ("cpu", "cu130")) -> Path:
    """Make `requirements/` with locks of one package, and `wheels/` with its wheel; return this."""
    wheel_dir, requirements = folder / "wheels", folder / "requirements"
    for one in (wheel_dir, requirements):
        one.mkdir()
    text = LOCK.format(sha256=sha256(make_wheel(wheel_dir, "honest")))
    for name in sets:
        (requirements / f"{name}.txt").write_text(text)
    return wheel_dir


def install_python(home: Path, pip_conf: str) -> None:
    """Give a home pip's settings, and a Python that makes environments.

    Its Python is the one that runs the tests; so is its pip, since unpacking another takes seconds.
    """
    pip = importlib.util.find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    packages = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    settings = home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(pip_conf)
    python = home / "bin" / "python3.14"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\ncase "$*" in *version_info*) echo 3.14 yes ;; "-m venv --clear "*)\n'
        f'  {sys.executable} -m venv --without-pip --clear "$4" &&\n'
        f'  echo {Path(pip.origin).parents[1]} > "$4/{packages}/pip.pth" ;;\n'
        f'*) exec {sys.executable} "$@" ;; esac\n'
    )
    python.chmod(0o755)


def make_wheel(folder: Path, word: str, *, name: str = "qft_probe") -> Path:
    """Build the package by hand, with a list of contents that is right."""
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"WORD = {word!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
        f",{len(text)}\n".replace("=,", ",")
        for path, text in files.items()
    )
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{about}/RECORD", record)
    return wheel


def sha256(path: Path) -> str:
    """The hash of a file, as pip counts it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
