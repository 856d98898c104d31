"""What libraries warn of goes to a log, never to the terminal of somebody who uses qft."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from commands.ui.library_warnings import QUIET

ROOT = Path(__file__).resolve().parent.parent
NOISY = """
import logging, sys, warnings
from pathlib import Path
sys.path.insert(0, {root!r})
import os
from commands.ui.library_warnings import log_library_warnings
log_library_warnings(Path({log!r}), os.environ)
warnings.warn("TripleDES has been moved", DeprecationWarning)
warnings.warn("old wheel", UserWarning)
logging.getLogger("azure.identity").warning("a token is old")
logging.getLogger("paramiko").error("half a traceback")
print(os.environ["HF_HUB_DISABLE_PROGRESS_BARS"], os.environ["PYTHONWARNINGS"])
"""


def noisy(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose libraries warn and log."""
    code = NOISY.format(root=str(ROOT), log=str(folder / "warnings.log"))
    inside = {name: value for name, value in os.environ.items() if name not in QUIET}
    words = [sys.executable, *options, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=inside | environ)


def test_warnings_and_logs_go_to_the_file(tmp_path: Path) -> None:
    """Nothing is printed, and everything can be read afterwards."""
    done = noisy(tmp_path)
    log = (tmp_path / "warnings.log").read_text()

    assert (done.stdout, done.stderr) == ("1 ignore\n", "")
    for message in ("old wheel", "a token is old", "half a traceback"):
        assert message in log


def test_without_a_home_there_is_no_file_and_no_noise(tmp_path: Path) -> None:
    """A command that has no folder yet makes none for a log."""
    done = noisy(tmp_path / "not there")

    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_who_asks_for_warnings_sees_them(tmp_path: Path) -> None:
    """`python -W` is obeyed."""
    code = NOISY.format(root=str(ROOT), log=str(tmp_path / "log")).split("print(", maxsplit=1)[0]
    words = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert "old wheel" in done.stderr
    assert not (tmp_path / "log").exists()


def test_commands_print_nothing_on_stderr_beside_their_own_messages(tmp_path: Path) -> None:
    """Looking commands in an empty home are silent, or speak in qft's own form."""
    environ = os.environ | {"QFT_HOME": str(tmp_path / "home")}
    for words in (["ls"], ["doctor"], ["status"], ["init", str(tmp_path / "new")]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *words],
            capture_output=True,
            text=True,
            check=False,
            env=environ,
            cwd=tmp_path,
        )

        assert "Warning" not in done.stderr
        assert "site-packages" not in done.stderr
