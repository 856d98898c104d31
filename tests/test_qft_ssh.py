"""`qft ssh` reaches the run's machine and no other, and its words are never options here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import Project, make_project
from support.sshd import Sshd, serve

from commands.runs.home import RunFolder
from commands.runs.running_machine import recorded_machine
from commands.ssh import parse_words
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.run.journal import Journal, Kind
from remote.keys import pair, plain_line

USER = "-oProxyCommand=touch INJECTED;:"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One OpenSSH server for the file."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def project(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that uses the server, made ready."""
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "host_key": server.host_key,
        "gpu": False,
        "python": sys.executable,
    }
    vm = {"provider": "ssh", "ssh": ssh, "max_price": None}
    made = make_project(tmp_path_factory.mktemp("project"), vm=vm)
    done = made.qft("up")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize(
    ("argv", "output", "code"),
    [
        (["tiny", "printf", "%s.", "-a", "-x"], "-a.-x.", 0),
        (["printf", "%s.", "-a", "-x"], "-a.-x.", 0),
        (["tiny", "--", "printf", "%s.", "-oProxyCommand=touch x"], "-oProxyCommand=touch.x.", 0),
        (["--", "printf", "%s.", "--help"], "--help.", 0),
        (["run.yaml", "printf", "%s.", "--json"], "--json.", 0),
        (["tiny", "exit", "7"], "", 7),
        (["exit", "43"], "", 43),
    ],
)
def test_the_arguments_after_the_run_are_the_command(
    project: Project, argv: list[str], output: str, code: int
) -> None:
    """Options belong to the command there, the name may be left out, the exit code comes back."""
    done = project.qft("ssh", *argv)

    assert (done.returncode, done.stdout) == (code, output), done.stderr


def test_help_is_that_of_qft_only_before_the_first_word(project: Project) -> None:
    """`qft ssh --help` explains; `qft ssh ls --help` asks the machine."""
    ours = project.qft("ssh", "--help")
    theirs = project.qft("ssh", "tiny", "cat", "--help")

    assert "Open a shell on the machine" in ours.stdout
    assert "Open a shell on the machine" not in theirs.stdout
    assert (ours.returncode, theirs.returncode) == (0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("user", USER), ("host", "-oProxyCommand=touch INJECTED"), ("user", "a b"), ("host", "x;id")],
)
def test_a_record_that_was_tampered_with_runs_nothing_here(
    project: Project, tmp_path: Path, field: str, value: str
) -> None:
    """A saved config or journal with an option in the place of a name is refused, exit 2."""
    other = make_project(tmp_path / "other")
    run = project.home / "runs" / "tiny"
    copied = other.home / "runs" / "tiny"
    copied.mkdir(parents=True)
    saved = json.loads((run / "run.json").read_text())
    (copied / "journal.jsonl").write_text(
        tampered((run / "journal.jsonl").read_text(), field, value)
    )
    write_json(copied / "run.json", saved)

    by_journal = other.qft("ssh", "tiny", "--", "true")
    saved["config"]["vm"]["ssh"][field] = value
    write_json(copied / "run.json", saved)
    by_config = other.qft("ssh", "tiny", "--", "true")

    for done in (by_journal, by_config):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "error: " in done.stderr
    assert list(other.folder.rglob("INJECTED")) == []


@pytest.mark.parametrize("swapped", [False, True], ids=["not yet in use", "in use"])
def test_either_host_key_is_accepted_while_one_replaces_the_other(
    project: Project, tmp_path: Path, *, swapped: bool
) -> None:
    """A change that was cut leaves two lines, and the machine presents one of them."""
    other = make_project(tmp_path / "other")
    run, copied = project.home / "runs" / "tiny", other.home / "runs" / "tiny"
    copied.mkdir(parents=True)
    first, second = recorded_machine(RunFolder(root=run)), plain_line(pair()[1])
    assert first is not None
    text = (run / "journal.jsonl").read_text()
    keys = [first.host_public_key, second]
    if swapped:
        text, keys = text.replace(keys[0], second), keys[::-1]
    (copied / "journal.jsonl").write_text(text)
    Journal(copied / "journal.jsonl", clock=lambda: 5.0).append(
        Kind.HOST_KEY_INTENDED, public_key=keys[1]
    )
    (copied / "run.json").write_bytes((run / "run.json").read_bytes())
    done = other.qft("ssh", "tiny", "--", "echo", "well")

    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    known_hosts = (copied / "known_hosts").read_text().splitlines()
    assert [line.split()[:3] for line in known_hosts] == [
        ["qft-tiny", *plain_line(key).split()] for key in keys
    ]


def tampered(journal: str, field: str, value: str) -> str:
    """The journal, with another user or host wherever a machine is described."""

    def mend(part: Any) -> Any:
        if isinstance(part, dict):
            inner = {key: mend(one) for key, one in part.items()}
            return inner | {field: value} if {"user", "host"} <= inner.keys() else inner
        return part

    lines = [json.dumps(mend(json.loads(line))) for line in journal.splitlines()]
    return "\n".join(lines) + "\n"


def test_an_option_in_run_yaml_is_refused_by_every_command(tmp_path: Path) -> None:
    """The user name of the shown case never reaches `ssh`: exit 2, and nothing is made."""
    ssh = {"host": "127.0.0.1", "user": USER, "key": "key", "host_key": "", "gpu": False}
    project = make_project(tmp_path, vm={"provider": "ssh", "max_price": None, "ssh": ssh})

    for argv in (["up"], ["ssh", "tiny", "--", "true"], ["ssh"], ["plan", "--json"]):
        done = project.qft(*argv)

        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert "vm.ssh.user: `-oProxyCommand=touch INJECTED;:` is no account name" in done.stderr
    assert list(tmp_path.rglob("INJECTED")) == []
    assert not (project.home / "runs").exists()


def make_runs(home: Path, *names: str) -> None:
    """Runs that were started, as far as their names tell."""
    for name in names:
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "journal.jsonl").write_text("")


@pytest.mark.parametrize(
    ("argv", "name", "command"),
    [
        ([], "tiny", []),
        (["tiny"], "tiny", []),
        (["tiny", "uname", "-a"], "tiny", ["uname", "-a"]),
        (["uname", "-a"], "tiny", ["uname", "-a"]),
        (["tiny", "--", "tiny"], "tiny", ["tiny"]),
        (["--", "tiny"], "tiny", ["tiny"]),
        (["nvidia-smi"], "tiny", ["nvidia-smi"]),
    ],
)
def test_a_name_may_be_left_out(
    tmp_path: Path, argv: list[str], name: str, command: list[str]
) -> None:
    """The first word is a run only if there is one of that name."""
    make_runs(tmp_path, "tiny")

    folder, found = parse_words(argv, tmp_path, cwd=tmp_path)

    assert (folder.name, found) == (name, command)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["uname", "-a"], "no telling on which machine"),
        (["tinny"], "did you mean `tiny`?"),
        (["nobody", "--", "ls"], "there is no run `nobody`"),
        (["-oProxyCommand=x"], "no telling on which machine"),
    ],
)
def test_a_command_without_a_machine_is_refused(
    tmp_path: Path, argv: list[str], expected: str
) -> None:
    """With two runs and no name the command runs nowhere."""
    make_runs(tmp_path, "tiny", "other")

    with pytest.raises(UsageError) as caught:
        parse_words(argv, tmp_path, cwd=tmp_path)

    assert expected in caught.value.message
