"""Streams that are closed or full: `qft` keeps its exit codes, its data and its temper."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.tiny import ROOT

from commands.ui.errors import HostError
from commands.ui.output import json_log_writer, print_error

FULL = Path("/dev/full")


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `$QFT` is the program; what is not redirected comes back."""
    program = f"{sys.executable} {ROOT / 'cli.py'}"
    return subprocess.run(
        ["sh", "-c", line.replace("$QFT", program)],
        cwd=folder,
        env={**os.environ, "QFT_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_messages_never_land_among_the_data(tmp_path: Path) -> None:
    """With stderr closed, a script still reads JSON and nothing else from stdout."""
    listed = shell(tmp_path, "$QFT ls --json 2>&-")
    empty = shell(tmp_path, "$QFT ls 2>&-")
    wrong = shell(tmp_path, "$QFT status 2>&-")

    assert (listed.stdout, listed.returncode) == ("[]\n", 0)
    assert (empty.stdout, empty.returncode) == ("", 0)
    assert (wrong.stdout, wrong.returncode) == ("", 2)


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_leaves_its_number_to_no_file(tmp_path: Path, closed: str) -> None:
    """What a library prints to number 1 or 2 must not end up in the journal opened after it."""
    numbers = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from commands.ui.output import open_std_streams; open_std_streams();"
        "number = open('made', 'w').fileno(); sys.exit(number)"
    )

    done = shell(tmp_path, f'{sys.executable} -c "{numbers}" {ROOT} {closed}')

    assert done.returncode >= 3


@pytest.mark.parametrize("words", ["status --json", "ls --json"])
def test_a_full_disk_under_stdout_is_reported_without_a_traceback(
    tmp_path: Path, words: str
) -> None:
    """The error reaches stderr, the exit code is documented, and no page of Python comes."""
    done = shell(tmp_path, f"$QFT {words} > {FULL}")

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "code"), [("", 2), ("ls", 0)])
def test_a_full_disk_under_stderr_changes_no_exit_code(
    tmp_path: Path, words: str, code: int
) -> None:
    """A log that takes no line any more is no reason to let go of a machine."""
    assert shell(tmp_path, f"$QFT {words} 2> {FULL}").returncode == code


def test_a_log_is_one_document_for_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, also in a character, the log is one object with its lines as they were."""
    with json_log_writer(follow=False) as write:
        for piece in (b"one\nt\xc3", b"\xb6\rw\x1b[2Jo\n", b"\nhalf"):
            write(piece)

    assert json.loads(capsys.readouterr().out) == {
        "lines": ["one", "t\u00f6\rw\x1b[2Jo", "", "half"]
    }


def test_a_log_that_is_followed_is_an_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is there as soon as it ends, and an error that cuts the log is one line more."""
    early = ""

    def read_it() -> None:
        nonlocal early
        with json_log_writer(follow=True) as write:
            write(b"one\ntwo")
            early = capsys.readouterr().out
            write(b"\nthr")
            raise HostError("the machine is gone", hint="look")

    with pytest.raises(HostError) as printed:
        read_it()
    print_error(printed.value, as_json=True)
    late = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert early == '{"line": "one"}\n'
    assert late[:2] == [{"line": "two"}, {"line": "thr"}]
    assert [one["error"] for one in late[2:]] == ["the machine is gone"]


@pytest.mark.parametrize(("words", "printed"), [(["ls"], []), (["ls", "--json"], ["interrupted"])])
def test_ctrl_c_while_qft_is_still_loading_ends_it_quietly(
    tmp_path: Path, words: list[str], printed: list[str]
) -> None:
    """What is installed as `qft`, interrupted in an import, exits 130 with no talk, only data."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = scripts["scripts"]["qft"].partition(":")
    (tmp_path / "typer.py").write_text("import os\nos.kill(os.getpid(), 2)\n", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function}; {function}()", *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (130, "")
    assert [json.loads(line)["error"] for line in done.stdout.splitlines()] == printed
