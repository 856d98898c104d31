"""The set-up of a fresh computer, and the second run of a failed test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = ROOT / "tests" / "conftest.py"
FLAKY = """
from pathlib import Path
def test_{n}():
    seen = Path(__file__).with_suffix(".{n}")
    first = not seen.exists()
    seen.touch()
    assert not first, "the first time of {n}"
"""
ALWAYS = "\ndef test_always():\n    assert 1 == 2\n"
FINE = "\ndef test_fine():\n    assert True\n"


def ci(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run the real `.ci/run` in a project of one file of tests, as `make check` would be run."""
    (folder / ".ci").mkdir()
    for name in ("run", "again.py"):
        shutil.copy(ROOT / ".ci" / name, folder / ".ci" / name)
    (folder / "tests").mkdir()
    shutil.copy(CONFTEST, folder / "tests" / "conftest.py")
    (folder / "tests" / "test_it.py").write_text(tests)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "Makefile").write_text(
        "check:\n\t.venv/bin/python -m pytest -p no:cacheprovider -n 1 tests\n"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        ["bash", str(folder / ".ci" / "run")],
        env=environ, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_flaky_test_is_green_and_named_last(tmp_path: Path) -> None:
    """Two tests that pass when run again leave CI green, and its last lines say how they failed."""
    done = ci(tmp_path, FLAKY.format(n="one") + FLAKY.format(n="two") + FINE)
    last = done.stdout.splitlines()[-5:]
    assert done.returncode == 0, done.stdout + done.stderr
    assert last[0].startswith("flaky: tests/test_it.py::test_one failed, and passed")
    assert "the first time of one" in last[1]
    assert last[2].startswith("flaky: tests/test_it.py::test_two failed, and passed")
    assert "the first time of two" in last[3]
    assert last[4].startswith("2 flaky, of at most 2")


def test_slowest_tests_are_printed(tmp_path: Path) -> None:
    """CI prints the twenty slowest tests."""
    done = ci(tmp_path, "import time\ndef test_slow():\n    time.sleep(0.2)\n    assert True\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slowest 20 durations" in done.stdout
    assert "test_it.py::test_slow" in done.stdout


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (ALWAYS + FLAKY.format(n="one"), "failed again, alone: tests/test_it.py::test_always"),
        (
            "".join(FLAKY.format(n=name) for name in ("a", "b", "c")),
            "3 tests failed; at most 2 are run again",
        ),
        ("import nothing_of_that_name\n", "it was not a single test that failed"),
        ("def broken(:\n", "it was not a single test that failed"),
    ],
    ids=["fails again", "three", "not imported", "not parsed"],
)
def test_what_no_second_run_mends_is_red(tmp_path: Path, tests: str, why: str) -> None:
    """A test that fails twice, three failures, or a file that cannot be collected fail CI."""
    done = ci(tmp_path, tests)
    assert done.returncode != 0
    assert why in done.stdout.splitlines()[-1]


def system(
    bare: Path, *words: str, programs: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tests/system.sh` where only a shell's basic programs and `programs` are found."""
    bare.mkdir()
    for name in ("sh", "id", "mktemp", "tail", "rm", "env", "true"):
        found = shutil.which(name)
        assert found
        (bare / name).symlink_to(found)
    for name, text in (programs or {}).items():
        (bare / name).unlink(missing_ok=True)
        (bare / name).write_text(text)
        (bare / name).chmod(0o755)
    text = (ROOT / "tests" / "system.sh").read_text()
    # The computer of the test may have these where the script looks beside PATH.
    script = bare / "system.sh"
    script.write_text(text.replace("/usr/sbin:/usr/local/sbin", str(bare)))
    return subprocess.run(
        [str(bare / "sh"), str(script), *words],
        env={"PATH": str(bare)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
OLD = "#!/bin/sh\ncase $2 in *print*) echo 3.9;; *) exit 1;; esac\n"
WITHOUT_VENV = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac\n'
NOBODY = "#!/bin/sh\necho 1000\n"
SUDO = '#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n'
ASKING_SUDO = "#!/bin/sh\necho 'a password is required' >&2\nexit 1\n"
APT = (
    '#!/bin/sh\nfor word; do last=$word; done\ncase "$*" in *" install "*) echo "$*" > '
    '"${0%/*}/installed";; esac\n'
)


ROOT_USER = "#!/bin/sh\necho 0\n"
FAILING_APT = "#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n"
SHELLS = dict.fromkeys(("fish", "tcsh"), "#!/bin/sh\n")
ALL = dict.fromkeys(("sshd", "ssh", "ssh-keygen"), "#!/bin/sh\n") | {"python3": PYTHON}


def test_missing_programs_are_one_line_where_nothing_may_be_installed(tmp_path: Path) -> None:
    """Without root and without a free sudo, one line says what to type, and nothing is changed."""
    programs = {"python3": PYTHON, "id": NOBODY, "sudo": ASKING_SUDO, "apt-get": APT}
    done = system(tmp_path / "bin", "python3", "tests", programs=programs)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sudo apt-get install openssh-server openssh-client" in done.stderr
    assert not (tmp_path / "bin" / "installed").exists()


@pytest.mark.parametrize(
    "who",
    [{"id": ROOT_USER}, {"id": NOBODY, "sudo": SUDO}],
    ids=["root", "sudo without a password"],
)
def test_missing_programs_are_installed_where_they_may(tmp_path: Path, who: dict[str, str]) -> None:
    """Root, or a sudo that asks nothing, installs exactly what is missing."""
    programs = {"python3": WITHOUT_VENV, "ssh": PYTHON, "ssh-keygen": PYTHON, "apt-get": APT} | who
    done = system(tmp_path / "bin", "python3", "tests", programs=programs)
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "bin" / "installed").read_text().split()
    assert words[-4:] == ["python3.12-venv", "openssh-server", "fish", "tcsh"]


def test_shells_for_trying_are_no_condition(tmp_path: Path) -> None:
    """Where nothing may be installed, or apt has no fish, tests run with the shells there are."""
    programs = ALL | {"id": NOBODY, "sudo": ASKING_SUDO, "apt-get": APT}
    silent = system(tmp_path / "bin", "python3", "tests", programs=programs)
    programs = ALL | {"id": ROOT_USER, "apt-get": FAILING_APT}
    without = system(tmp_path / "other", "python3", "tests", programs=programs)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    assert without.returncode == 0
    assert without.stdout.endswith("going on without: fish tcsh\n")


def test_nothing_is_printed_or_done_where_nothing_is_missing(tmp_path: Path) -> None:
    """With every program there, the set-up is silent and installs nothing."""
    programs = ALL | SHELLS | {"id": ROOT_USER, "apt-get": APT}
    done = system(tmp_path / "bin", "python3", "tests", programs=programs)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "bin" / "installed").exists()


@pytest.mark.parametrize(
    ("words", "programs", "reported"),
    [
        (("python3",), {"python3": OLD}, "needs Python 3.11 or later, and python3 is 3.9"),
        (("python3.99",), ALL, "no `python3.99` here"),
        (("python3", "tests"), {"python3": PYTHON}, "with this system's package manager"),
        (
            ("python3", "tests"),
            {"python3": PYTHON, "id": NOBODY},
            "with this system's package manager",
        ),
        (
            ("python3", "tests"),
            {"python3": PYTHON, "id": ROOT_USER, "apt-get": FAILING_APT},
            "apt-get could not install openssh-server openssh-client",
        ),
    ],
    ids=["old", "unknown", "no apt", "no apt, no root", "apt fails"],
)
def test_set_up_that_cannot_go_on_says_what_to_do(
    tmp_path: Path, words: tuple[str, ...], programs: dict[str, str], reported: str
) -> None:
    """An old or unknown Python, a system without apt, and an apt that fails end with the cause."""
    done = system(tmp_path / "bin", *words, programs=programs)
    assert done.returncode == 2
    assert reported in done.stderr.splitlines()[-1]
