"""Nothing of a machine's own settings changes what we install there, or what a trainer imports."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshd, wheels

from remote.clean_environment import NAMES, PREFIXES, clean, strip_clean_environment
from remote.on_machine import pip_settings
from remote.setup import python_env
from remote.setup.apply import ReadyMachine, apply
from remote.setup.steps import SetupGoal
from remote.ssh import connect


@pytest.fixture
def wheel_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of one package, and the folder with its wheel."""
    folder = wheels.make_wheel_dir(tmp_path)
    monkeypatch.setattr(python_env, "REQUIREMENTS", tmp_path / "requirements")
    return folder


@pytest.fixture
def server(tmp_path: Path, wheel_dir: Path) -> Iterator[sshd.Sshd]:
    """A machine of somebody else's, on which pip finds packages in a folder."""
    with sshd.serve(tmp_path / "machine") as running:
        wheels.install_python(
            running.home, f"[global]\nno-index = true\nfind-links = {wheel_dir}\n"
        )
        yield running


def login_sets(server: sshd.Sshd, **environ: str) -> None:
    """Let the login of the machine set variables, as a start-up file does."""
    wrapper = server.home.parent / "enter"
    lines = "".join(f"export {name}='{value}'\n" for name, value in environ.items())
    head, _, rest = wrapper.read_text().partition("\n")
    wrapper.write_text(f"{head}\n{lines}{rest}")


def hostile(folder: Path) -> str:
    """Packages of another project that break whoever imports them."""
    for name in ("numpy", "torch", "pip", "venv", "sitecustomize", "json"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('of another project')\n")
    return str(folder)


def make(server: sshd.Sshd) -> ReadyMachine:
    """Set the machine up for training without a GPU."""
    with connect(server.host()) as connection:
        return apply(
            connection, SetupGoal(), on_message=lambda _: None, sleep=lambda s: time.sleep(s / 10)
        )


def installed(server: sshd.Sshd, ready: ReadyMachine) -> bool:
    """Whether the package is in the environment, and in no other place of the home."""
    found = [str(one) for one in server.home.rglob("qft_probe.py")]
    return len(found) == 1 and found[0].startswith(str((server.home / ready.python).parents[1]))


EVERYTHING = """[global]
no-index = true
find-links = {wheel_dir}
root = {home}/elsewhere
require-virtualenv = true
python = /no/such
constraint = {home}/constraints.txt
quiet = 3
[install]
target = {home}/elsewhere
prefix = {home}/elsewhere
no-binary = :all:
dry-run = true
report = {home}/report
no-such-option = 1
"""


def set_pip_up(server: sshd.Sshd, wheel_dir: Path, text: str) -> Path:
    """Write the settings of the machine's pip, and what they name; return the file."""
    (server.home / "constraints.txt").write_text("qft_probe==0.9\n")
    path = server.home / ".config/pip/pip.conf"
    path.write_text(text.format(home=server.home, wheel_dir=wheel_dir))
    return path


@pytest.mark.parametrize(
    "text",
    ["[global]\nno-index = true\nfind-links = {wheel_dir}\n[install]\nuser = true\n", EVERYTHING],
    ids=["user", "everything"],
)
def test_pip_settings_of_the_machine_do_not_leak(
    server: sshd.Sshd, wheel_dir: Path, text: str
) -> None:
    """The real pip installs into our environment what the lock names, whatever pip.conf says."""
    set_pip_up(server, wheel_dir, text)

    assert installed(server, make(server))
    assert not (server.home / "elsewhere").exists()


def test_a_named_file_of_pip_settings_does_not_leak(server: sshd.Sshd, wheel_dir: Path) -> None:
    """PIP_CONFIG_FILE, which `--isolated` alone obeys, counts for no more than the user's file."""
    path = set_pip_up(server, wheel_dir, EVERYTHING)
    login_sets(server, PIP_CONFIG_FILE=str(path.rename(server.home / "my.conf")))

    assert installed(server, make(server))


def test_environment_of_the_login_does_not_leak(server: sshd.Sshd) -> None:
    """What a start-up file sets for other projects changes nothing of what we install."""
    login_sets(
        server,
        PIP_USER="1",
        PIP_TARGET="/no/such",
        PIP_REQUIRE_VIRTUALENV="1",
        VIRTUAL_ENV="/opt/other",
        PYTHONHOME="/opt/other",
        CONDA_PREFIX="/opt/conda",
        PYTHONSAFEPATH="1",
        PYTHONWARNINGS="error",
        PYTHONSTARTUP="/no/such",
    )

    assert installed(server, make(server))


def test_packages_of_another_project_do_not_leak(server: sshd.Sshd, tmp_path: Path) -> None:
    """With PYTHONPATH full of packages that break, the environment is made and is found whole."""
    login_sets(server, PYTHONPATH=hostile(tmp_path / "ros"))
    ready = make(server)
    with connect(server.host()) as connection:
        again = apply(
            connection, SetupGoal(), on_message=lambda _: None, sleep=lambda s: time.sleep(s / 10)
        )

    assert installed(server, ready)
    assert again.done == ()


def test_what_we_make_is_its_users_alone(server: sshd.Sshd) -> None:
    """All that we wrote and every folder is closed to group and others, the environment with it."""
    ready = make(server)

    environment = (server.home / ready.python).parents[1]
    ours = [
        path
        for path in (server.home / "qft", *(server.home / "qft").rglob("*"))
        if not path.is_relative_to(environment) or path == environment
    ]
    assert len(ours) > 6
    assert [str(path) for path in ours if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def run_clean(argv: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the trainer is run."""
    given = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environ}
    return subprocess.run(
        clean(argv, ours=True), env=given, capture_output=True, text=True, check=True
    )


def test_trainer_imports_its_own_packages(tmp_path: Path) -> None:
    """Neither PYTHONPATH nor PYTHONSTARTUP nor a site of the user reaches the trainer's Python."""
    script = "import sys, site, json; print(sys.path, site.ENABLE_USER_SITE)"
    environ = {"PYTHONPATH": hostile(tmp_path / "ros"), "PYTHONSTARTUP": "/no", "PYTHONHOME": "/no"}

    output = run_clean([sys.executable, "-c", script], **environ).stdout

    assert "ros" not in output
    assert output.strip().endswith("False")


def test_names_that_pass_and_names_that_do_not() -> None:
    """Of Python, pip, environments and launchers nothing passes; what machines need does."""
    kept = {
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "https_proxy": "http://proxy:3128",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "HF_HOME": "/data/hf",
        "LANG": "C.UTF-8",
        "QFT_MACHINE": "m",
        "ENVIRONMENT": "lab",
        "RANKING": "x",
        "ODD": "a\nPYTHONPATH=b\nc",
    }
    dropped = {f"{stem}X" if stem.endswith("_") else stem for stem in PREFIXES} | {*NAMES}
    # A name of the dynamic linker acts on the shell itself, so it is only looked at here.
    dropped -= {"LD_PRELOAD", "LD_AUDIT"}
    given = {**kept, **dict.fromkeys(dropped, "/no/such")}

    output = run_clean([sys.executable, "-c", "import os; print(dict(os.environ))"], **given).stdout
    found = eval(output)  # noqa: S307  (our own child's dictionary)

    assert {name: found.get(name) for name in kept} == kept
    assert dropped & found.keys() == set()


def test_arguments_arrive_at_the_command_as_they_are() -> None:
    """Spaces, quotes, stars, dollars and empty words of an argument are neither split nor read."""
    argv = ["", "a b", "*", "$HOME", "'\"", "-x", "é\n"]

    output = run_clean([sys.executable, "-c", "import sys; print(sys.argv[1:])", *argv]).stdout

    assert output.strip() == str(argv)
    assert strip_clean_environment(clean(["python", *argv], ours=False)) == ["python", *argv]
    assert strip_clean_environment(["python", "-m", "trainer"]) == ["python", "-m", "trainer"]


def test_umask_of_the_trainer() -> None:
    """What the trainer writes is its user's alone."""
    output = run_clean([sys.executable, "-c", "import os; print(oct(os.umask(0)))"]).stdout

    assert output.strip() == "0o77"


def test_places_of_packages_are_carried_over(tmp_path: Path) -> None:
    """Index, proxy and certificate are handed on as options, the later one winning; no other is."""
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://first/simple\nproxy = http://p:1\nuser = true\n"
        "extra_index_url =\n  https://a/simple\n  https://b/simple\n"
        "[install]\nindex-url = https://second/simple\nno-index = no\n"
    )
    (tmp_path / "own.conf").write_text("[global]\ncert = /etc/ca.pem\n[list]\nformat=json\n")
    environ = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "PIP_CONFIG_FILE": str(tmp_path / "own.conf"),
        "PIP_TIMEOUT": "60",
        "PIP_TARGET": "/no",
    }
    argv = [one for one in pip_settings.options(environ) if "/opt/" not in one]

    assert argv == [
        "--index-url=https://second/simple",
        "--proxy=http://p:1",
        "--cert=/etc/ca.pem",
        "--timeout=60",
        "--extra-index-url=https://a/simple",
        "--extra-index-url=https://b/simple",
    ]


@pytest.mark.parametrize("text", ["[global\n", "\x00", "x", "[global]\nindex-url\n", "é" * 9999])
def test_settings_that_cannot_be_read_count_as_none(tmp_path: Path, text: str) -> None:
    """A file that pip itself would stumble over ends nothing."""
    (tmp_path / "own.conf").write_text(text, encoding="latin-1")
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "own.conf")}

    assert isinstance(pip_settings.options(environ), list)
    assert pip_settings.options({**environ, "PIP_CONFIG_FILE": os.devnull}) == []
