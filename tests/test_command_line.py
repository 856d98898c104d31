"""The door's manners: it survives closed pipes, full disks and strange words, and harms nothing."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import yaml
from support.fakecloud import Story
from support.runs import Project, make_project
from support.tiny import ROOT

from commands import down
from commands.runs import factory, release_run, session
from commands.runs.checkpoint_sync import CheckpointSync
from commands.runs.config import check, load
from commands.runs.home import RunFolder, make_home, run_folder, run_lock
from commands.runs.payload import build_payload
from commands.runs.power_watch import PowerWatch
from commands.runs.result_files import Expected
from commands.runs.workload import SshWorkload
from commands.ssh import _quoted
from commands.ui.console import PlainConsole
from commands.ui.errors import UsageError
from commands.ui.output import clean, log_writer, write_line
from infra.config import VmTable
from infra.durable import locked, write_json
from infra.errors import Gone
from infra.provider import Vm
from infra.run.fold import fold
from infra.run.journal import Event, Journal, Kind, read
from infra.run.plan import Goal, RunPlan
from infra.run.workload import HostUnfit, HostUnreachable
from remote import errors, job
from remote.sync.plan import SyncOptions
from trainer.method_table import MethodTable


def closed_pipe() -> io.TextIOWrapper:
    """Make a stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def test_words_of_a_machine_cannot_repaint_the_terminal() -> None:
    """Escape sequences, backspaces and text direction are shown as what they are: foreign."""
    message = "loss 1\r\x1b]0;evil\x07\x9b2J\b\u202eabc\tä→\n"

    assert clean(message) == "loss 1\n�]0;evil��2J��abc\tä→\n"


def test_a_log_is_written_as_it_is_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a terminal gets the cleaned words; a pipe or file gets the machine's bytes."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="utf-8"))

    log_writer()(b"\x1b[31m\xff")

    assert buffer.getvalue() == b"\x1b[31m\xff"


def test_a_run_goes_on_when_nobody_listens_any_more() -> None:
    """`qft run 2>&1 | head` must not end the supervision of a machine that bills."""
    with closed_pipe() as stream:
        console = PlainConsole(stream, simulated=True, clock=lambda: 0.0)
        console.log("one")
        console.progress("adapter", 2 << 20, 2 << 20)
        write_line(stream, "two")

        assert not stream.closed


def test_output_that_nobody_reads_ends_quietly() -> None:
    """A reader that leaves early gets no traceback, and the exit code of a broken pipe."""
    with closed_pipe() as stream:
        command = [sys.executable, str(ROOT / "cli.py"), "--version"]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, check=False)

    assert (done.returncode, done.stderr) == (141, b"")


def test_an_existing_home_keeps_its_permissions(tmp_path: Path) -> None:
    """`QFT_HOME=/tmp` must not lock everybody else out of /tmp; a new home is its owner's only."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)

    make_home(shared)
    make_home(tmp_path / "new")

    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_look_at_the_lock_does_not_turn_a_driver_away(tmp_path: Path) -> None:
    """`qft status` holds the lock for a moment; a `qft run` that comes just then waits it out."""
    run = RunFolder(root=tmp_path)
    held = threading.Event()

    def probe() -> None:
        with locked(run.lock):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=probe)
    thread.start()
    held.wait()
    with run_lock(run):
        thread.join()

        assert run.lock.exists()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that is in order."""
    return make_project(tmp_path / "project")


def test_a_name_belongs_to_one_file_that_may_move(project: Project, tmp_path: Path) -> None:
    """A copy with the same name elsewhere is another run; a file that moved is the same one."""
    first = load(project.config)
    saved: dict[str, object] = {"path": str(project.config)}
    copy = tmp_path / "copy" / "run.yaml"
    copy.parent.mkdir()
    shutil.copy(project.config, copy)

    session._demand_same_file(first, saved)
    with pytest.raises(UsageError, match="belongs to the run of"):
        session._demand_same_file(load(copy), saved)
    project.config.unlink()
    session._demand_same_file(load(copy), saved)

    assert load(copy).config == first.config


def test_a_change_holds_until_the_trainer_was_started_with_it() -> None:
    """Killed between the resume and the launch, the next command still knows of the change."""
    changed = Event(number=1, at_s=0.0, kind=Kind.RUN_RESUMED, data={"changed": True})
    same = Event(number=2, at_s=0.0, kind=Kind.RUN_RESUMED, data={"changed": False})
    launched = Event(number=3, at_s=0.0, kind=Kind.LAUNCHED, data={})

    assert session._is_changed([launched, changed, same])
    assert not session._is_changed([changed, launched, same])


@pytest.mark.parametrize(("changed", "left_in_peace"), [(False, True), (True, False)])
def test_a_trainer_that_runs_is_stopped_only_for_another_config(
    monkeypatch: pytest.MonkeyPatch, *, changed: bool, left_in_peace: bool
) -> None:
    """More steps allowed while the old job runs: it saves, ends, and the new config is pushed."""
    did: list[str] = []
    config = SimpleNamespace(
        changed=changed,
        clock=lambda: 0.0,
        on_message=lambda _text: None,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        layout=SimpleNamespace(base="qft/x", run_dir="qft/x/run"),
        home=Path("/nowhere"),
        payload=SimpleNamespace(items=lambda _base: ["config"], large_folders=()),
        power_watch=PowerWatch(lambda _vm: ""),
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    running = job.JobStatus(state=job.JobState.RUNNING)
    fakes: dict[str, Any] = {
        "_open": lambda _vm: None,
        "_make_ready": lambda connection, _vm: connection,
        "_job": lambda _vm: SimpleNamespace(status=lambda: running),
        "stop": lambda _vm: did.append("stop"),
        "_push": lambda *_all: did.append("push"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(work, name, fake)
    monkeypatch.setattr(work._checkpoint_sync, "push_newest", lambda _connection: None)

    work.prepare(Vm(provider="x", run_id="x", id="x", region="a", size="s"))

    assert did == ([] if left_in_peace else ["stop", "push"])


@pytest.mark.parametrize(("code", "tries"), [(100, 3), (127, 1)])
def test_a_set_up_step_that_fails_is_tried_again_twice(
    monkeypatch: pytest.MonkeyPatch, code: int, tries: int
) -> None:
    """A package mirror has bad moments; a program that is not there stays away."""
    config = SimpleNamespace(
        on_message=lambda _text: None,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        layout=SimpleNamespace(run_dir="qft/x/run"),
        home=Path("/nowhere"),
        power_watch=PowerWatch(lambda _vm: ""),
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    result = errors.CommandResult(exit_code=code, stdout="", stderr="503")

    def fail(*_all: object) -> None:
        raise errors.CommandFailed("apt-get update", result)

    monkeypatch.setattr(work, "_open", lambda _vm: None)
    monkeypatch.setattr(work, "_make_ready", fail)
    ends = []
    while HostUnfit not in ends:
        with pytest.raises((HostUnfit, HostUnreachable), match="503") as caught:
            work.prepare(VM)
        ends.append(caught.type)

    assert len(ends) == tries


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run with a machine that is up, in a home of its own."""
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    made = Story(path=folder / "journal.jsonl", plan=RunPlan(goal=Goal.UP))
    made.go()
    return made


def test_down_releases_although_the_disk_here_is_full(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the bill does not wait for room in the record; what is not written is said."""
    journal = Journal(story.path, clock=story.world.clock)
    messages: list[str] = []

    def full(*_all: object, **_data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "append", full)
    record = release_run.Record("run", journal, messages.append)

    state = fold(journal.events)
    result = release_run.release_recorded(record, story.cloud, state, delete=True, disk_days=None)

    assert (story.cloud.vms, result.left) == ({}, [])
    assert "No space left" in messages[0]


def test_down_of_a_machine_that_is_gone_removes_what_it_left(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine deleted by hand may have left disk and address, which bill."""

    def gone(_vm: Vm) -> None:
        raise Gone("no such machine")

    monkeypatch.setattr(story.cloud, "deallocate", gone)
    journal = Journal(story.path, clock=story.world.clock)

    release_run.release_recorded(
        release_run.Record("run", journal, print),
        story.cloud,
        fold(journal.events),
        delete=False,
        disk_days=None,
    )

    assert story.cloud.log[-1] == "delete"
    assert fold(read(story.path)).deleted


@pytest.mark.parametrize("delete", [True, False])
def test_down_of_everything_is_written_into_the_record_of_each_run(
    story: Story, tmp_path: Path, *, delete: bool
) -> None:
    """Otherwise the run's bill would go on, and eat a budget that nobody spends."""
    down.down_all([story.cloud], tmp_path, delete=delete, on_message=print)

    state = fold(read(story.path))

    assert (state.up, state.deleted) == (False, delete)
    assert all(not span.compute for span in state.spans if span.end_s is None)


def test_a_name_that_two_computers_gave_is_refused(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a record here, `down NAME` does not pick one of two machines silently."""
    vms = [Vm(provider="x", run_id=f"tiny-{n}", id=n, region="a", size="s") for n in ("1", "2")]
    monkeypatch.setattr(story.cloud, "list_all", lambda: vms)
    monkeypatch.setattr(down, "providers_to_ask", lambda _home: [story.cloud])

    with pytest.raises(UsageError, match="several runs") as caught:
        down._down_unrecorded("tiny", tmp_path, lambda _line: None, delete=True)

    assert len(caught.value.problems) == 2


def test_paths_reach_ssh_whole(tmp_path: Path) -> None:
    """A home with spaces and percent signs in its name is one path to OpenSSH's client."""
    path = tmp_path / "my home 100%" / "known_hosts"
    words = ["ssh", "-F", "none", "-o", f"UserKnownHostsFile={_quoted(path)}", "-G", "nowhere"]

    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert f"userknownhostsfile {path}" in printed.replace("%%", "%").replace('"', "")


def test_a_pinned_host_key_that_is_none_is_refused_before_anything_else() -> None:
    """A mangled line in run.yaml is the user's to mend: exit 2, no traceback."""
    ssh = {"host": "h", "user": "u", "key": "k", "host_key": "ssh-ed25519 nonsense!"}
    table = VmTable.model_validate({"provider": "ssh", "ssh": ssh})

    with pytest.raises(UsageError, match=r"vm\.ssh\.host_key"):
        factory.check_host_key(factory.need_ssh(table))


class SlowConnection:
    """A connection on which every command lasts until it is closed."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.closed = threading.Event()
        self.cut = False

    def run(self, *_words: object, **_more: object) -> None:
        """Wait for the end."""
        self.started.set()
        self.cut = self.closed.wait(600)
        raise errors.Unreachable("cut")

    def close(self) -> None:
        """Cut it."""
        self.closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


VM = Vm(provider="x", run_id="x", id="x", region="a", size="s")


def make_checkpoint_sync(tmp_path: Path, connect: Any, messages: list[str]) -> CheckpointSync:
    """Copy checkpoints from nowhere."""
    return CheckpointSync(
        connect=connect,
        remote_run="run",
        home=tmp_path / "checkpoints",
        options=SyncOptions(),
        expected=lambda: Expected(method=MethodTable(), tensor_bytes_max=1 << 20, steps_max=10),
        on_message=messages.append,
    )


def test_ctrl_c_does_not_wait_for_a_checkpoint_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping closes the line under a copy; the next copy resumes it."""
    monkeypatch.setattr("commands.runs.checkpoint_sync.EVERY_S", 0.01)
    connection, messages = SlowConnection(), list[str]()
    copying = make_checkpoint_sync(tmp_path, lambda _vm: connection, messages)
    copying.start(VM)
    connection.started.wait()

    copying.stop()

    assert connection.cut
    assert messages == []


def test_checkpoints_that_do_not_come_home_are_reported_once(tmp_path: Path) -> None:
    """A full disk here is said, not hidden behind a thread that ends and starts again."""
    messages: list[str] = []

    def connect(_vm: Vm) -> None:
        raise errors.NoSpace("home", needed_bytes=2, free_bytes=1)

    copying = make_checkpoint_sync(tmp_path, connect, messages)
    for _ in range(3):
        copying.start(VM)
        while copying._thread is not None and copying._thread.is_alive():
            time.sleep(0.01)

    assert len(messages) == 1
    assert "no space left" in messages[0]


def test_a_run_is_found_by_name_beside_a_folder_of_that_name(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qft run tiny` means the run, also where a folder `tiny` lies."""
    from commands.runs.find_config import find_config

    home = tmp_path / "home"
    folder = run_folder(home, "tiny")
    folder.root.mkdir(parents=True)
    Journal(folder.journal, clock=time.time).append(Kind.RUN_STARTED, run_id="tiny-1", name="tiny")
    content = yaml.safe_load(project.config.read_text())
    write_json(folder.config, session._saved(check(content, project.config), ()))
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)

    assert find_config("tiny", home).path == project.config


def test_a_key_beside_the_run_yaml_is_found_from_everywhere(project: Project) -> None:
    """A relative `vm.ssh.key` starts at the file's folder, like every path in it."""
    content = yaml.safe_load(project.config.read_text())
    content["vm"] = {"provider": "ssh", "ssh": {"host": "h", "user": "u", "key": "keys/id"}}

    table = check(content, project.config).config.vm.ssh

    assert table is not None
    assert table.key == str(project.folder / "keys" / "id")


def test_an_onlooker_writes_nothing(project: Project, tmp_path: Path) -> None:
    """`qft status` must not replace the config that a driver is about to push."""
    payload = build_payload(load(project.config), tmp_path / "staging", write=False)

    assert payload.config == tmp_path / "staging" / "config.json"
    assert not (tmp_path / "staging").exists()
