"""A run is on record from its first act; its config binds once something was trained."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import Project, make_project
from support.sshd import Sshd, serve

from commands import ls, status
from commands.runs import config_diff, factory, session
from commands.runs.config import LoadedConfig, load
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, all_runs, run_folder
from commands.runs.request import RunRequest
from commands.runs.session import open_session
from commands.ui.errors import UsageError
from infra.offer import Offer
from infra.provider import Observation, PowerState, Vm
from infra.run.fold import fold
from infra.run.journal import Journal, Kind, read
from infra.run.state import RunState
from infra.run.workload import HostUnreachable
from remote import keys

VM = Vm(
    provider="local", run_id="tiny-1", id="1", region="a", size="s", host="127.0.0.1", generation=1
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that is in order, and a process whose home is its own."""
    made = make_project(tmp_path / "project")
    monkeypatch.setenv("QFT_HOME", str(made.home))
    monkeypatch.chdir(made.folder)
    return made


def attempt(project: Project, loaded: LoadedConfig | None = None) -> list[str]:
    """Open the run as a command does, and fail at once; return the messages."""
    messages: list[str] = []
    console: Any = SimpleNamespace(log=messages.append, progress=None, report=None)
    request = RunRequest(loaded=loaded or load(project.config), home=project.home, console=console)
    with pytest.raises(OSError, match="no luck"), open_session(request):
        raise OSError("no luck")
    return messages


def edit(project: Project, old: str, new: str) -> None:
    """Change the run.yaml."""
    text = project.config.read_text()
    assert old in text
    project.config.write_text(text.replace(old, new))


def note(project: Project, *acts: tuple[Kind, dict[str, Any]]) -> RunFolder:
    """Write into the record of the run."""
    run = run_folder(project.home, "tiny")
    journal = Journal(run.journal, clock=time.time)
    for kind, data in acts:
        journal.append(kind, **data)
    return run


OFFER = asdict(Offer(provider="local", region="a", size="s", spot_usd_per_h=0.2))
RENTED: list[tuple[Kind, dict[str, Any]]] = [
    (Kind.CREATE_INTENDED, {"offer": OFFER, "generation": 1}),
    (Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
]


def test_a_change_after_a_failed_start_counts_and_is_printed(project: Project) -> None:
    """Nothing was trained: steps, rows and prompt may be others, and the record has them."""
    assert attempt(project) == []
    edit(project, "steps: 250", "steps: 260")
    edit(project, "mood: ", "feeling: ")
    with (project.folder / "train.jsonl").open("a") as file:
        file.write('{"text": "late", "mood": "neutral"}\n')

    (message,) = attempt(project)

    assert "nothing was trained yet, so it counts" in message
    assert all(key in message for key in ("train.steps", "data.prompt", "data.train"))
    assert attempt(project) == []
    run = run_folder(project.home, "tiny")
    assert reopen(run).config.train.steps == 260
    assert [event.kind for event in read(run.journal)][:2] == [Kind.RUN_STARTED, Kind.RUN_RESUMED]


def test_a_change_after_the_training_began_is_refused_with_the_difference(
    project: Project,
) -> None:
    """Half a run of each would be no experiment; what may change at any time may still."""
    attempt(project)
    note(project, *RENTED, (Kind.LAUNCHED, {}), (Kind.PROGRESS, {"step": 5, "steps": 250}))
    edit(project, "steps: 250", "steps: 260")

    console: Any = SimpleNamespace(log=print)
    request = RunRequest(loaded=load(project.config), home=project.home, console=console)
    with pytest.raises(UsageError, match="another config") as caught, open_session(request):
        pass

    assert caught.value.problems == ["train.steps: 250 became 260"]
    edit(project, "steps: 260", "steps: 250")
    edit(project, "usd: 1.0", "usd: 2.0")
    edit(project, "gpu: T4", "gpu: A10")
    assert attempt(project) == []


@pytest.mark.parametrize(
    ("state", "bound"),
    [
        (RunState(), False),
        (RunState(run_id="tiny-1", generation=3), False),
        (RunState(vm=VM, up=True, prepared=True), True),
        (RunState(vm=VM, up=True), False),
        (RunState(vm=VM, up=True, launched=True, launches=1), True),
        (RunState(vm=VM, launches=1), True),
        (RunState(launches=1, deleted=True), False),
        (RunState(step=1), True),
        (RunState(disk_step=1, vm=VM), True),
        (RunState(home_step=25), True),
        (RunState(pending=Kind.LAUNCH_INTENDED, vm=VM), True),
        (RunState(pending=Kind.CREATE_INTENDED), False),
        (RunState(trained=True), True),
        (RunState(fetched="out"), True),
    ],
)
def test_what_was_or_may_have_been_trained_binds(state: RunState, *, bound: bool) -> None:
    """A job may have worked unseen on a machine that is still there."""
    assert config_diff.is_bound(state) == bound


def test_a_run_killed_between_its_config_and_its_journal_is_begun_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is never a record without its config, and a config alone is no run."""
    append = Journal.append

    def killed(self: Journal, kind: Kind, **data: Any) -> Any:
        raise OSError("no luck")

    monkeypatch.setattr(Journal, "append", killed)
    attempt(project)
    assert all_runs(project.home) == []
    monkeypatch.setattr(Journal, "append", append)
    edit(project, "steps: 250", "steps: 260")

    attempt(project)

    (run,) = all_runs(project.home)
    assert reopen(run).config.train.steps == 260


def test_a_name_whose_run_never_began_is_free_for_another_file(
    project: Project, tmp_path: Path
) -> None:
    """A copy elsewhere may take the name as long as nothing was rented or trained under it."""
    attempt(project)
    other = make_project(tmp_path / "other")

    attempt(project, load(other.config))

    assert reopen(run_folder(project.home, "tiny")).path == other.config
    note(project, *RENTED)
    with pytest.raises(UsageError, match="belongs to the run of"):
        attempt(project)


@pytest.mark.parametrize(
    ("was", "now", "key"),
    [
        ({}, {"provider": "azure"}, "vm.provider"),
        (
            {"provider": "azure", "azure": {"subscription": "a"}},
            {"provider": "azure", "azure": {"subscription": "b"}},
            "vm.azure.subscription",
        ),
        (
            {"provider": "ssh", "ssh": {"host": "a", "user": "me", "key": "k"}},
            {"provider": "ssh", "ssh": {"host": "b", "user": "me", "key": "k"}},
            "vm.ssh.host",
        ),
        ({}, {"azure": {"subscription": "b"}}, ""),
        ({}, {"gpu": "A10", "regions": ["eastus"], "max_price": 0.5, "disk_gb": 64}, ""),
        ({}, {"local": {"notice_s": 2}}, ""),
    ],
)
def test_a_machine_is_never_forgotten_for_another_place(
    tmp_path: Path, was: dict[str, Any], now: dict[str, Any], key: str
) -> None:
    """While it is there, its provider, account and host stay; the rest holds for the next one."""
    first = load(make_project(tmp_path / "a", vm=was).config)
    second = load(make_project(tmp_path / "a", vm=now).config)
    saved = session._saved(first, ())
    vm = replace(VM, provider=was.get("provider", "local"))
    rented, requests = RunState(vm=vm), RunState(pending=Kind.CREATE_INTENDED)

    config_diff.require_same_machine(second, saved, RunState())
    for state in (rented, requests):
        if not key:
            config_diff.require_same_machine(second, saved, state)
            continue
        with pytest.raises(UsageError, match="still has a machine") as caught:
            config_diff.require_same_machine(second, saved, state)
        assert caught.value.problems[0].startswith(f"{key}: ")
        assert "`qft down --delete tiny`" in caught.value.hint


class Silent:
    """A workload whose machine does not answer, or does."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers

    def connect(self, _vm: Vm) -> None:
        """Answer, or not."""
        if not self._answers:
            raise HostUnreachable("127.0.0.1 does not answer")

    def disconnect(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(
    ("answers", "age_s", "summary"),
    [
        (False, 30.0, "machine starting"),
        (False, 3000.0, "machine not answering"),
        (True, 3000.0, "machine running"),
    ],
)
def test_a_machine_that_nobody_signed_in_to_is_not_running(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    age_s: float,
    summary: str,
    *,
    answers: bool,
) -> None:
    """The cloud calls it running; status says since when it is silent, and that it bills."""
    attempt(project)
    now_s = time.time()
    run = run_folder(project.home, "tiny")
    journal = Journal(run.journal, clock=lambda: now_s - age_s)
    vm = replace(VM, run_id=fold(journal.events).run_id)
    for kind, data in [RENTED[0], (Kind.CREATE_ACCEPTED, {"vm": asdict(vm)})]:
        journal.append(kind, **data)
    seen = Observation(power=PowerState.RUNNING, host="127.0.0.1", port=22)
    cloud = SimpleNamespace(
        name="local",
        observe=lambda _vm: seen,
        traits=SimpleNamespace(rents=True),
        list_all=lambda: [replace(vm, power=PowerState.RUNNING)],
    )
    monkeypatch.setattr(factory, "make_provider", lambda *_all: cloud)
    monkeypatch.setattr(session, "build_workload", lambda *_a, **_k: Silent(answers=answers))
    monkeypatch.setattr(ls, "providers_to_ask", lambda *_all: [cloud])

    found = status.status("tiny")

    assert (found.summary, found.to_json()["machine"]["signed_in"]) == (summary, answers)
    rows = dict(found.lines())
    assert ("sign-in" in rows) == (not answers)
    assert "it bills" in rows.get("sign-in", "it bills")
    assert found.usd_per_h_now > 0
    assert [line.state for line in ls.runs()] == ["machine starting"]
    ((machine,), _trouble) = ls.machines()
    assert (machine.power, machine.bills_compute) == ("starting", True)


def test_a_run_that_never_rented_is_not_started(project: Project) -> None:
    """Listed by its name, without a machine that it never had."""
    attempt(project)

    assert [line.state for line in ls.runs()] == ["not started"]


def on(server: Sshd, folder: Path, host_key: str) -> Project:
    """A project whose machine is an OpenSSH server."""
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "gpu": False,
        "key": str(server.client_key),
        "host_key": host_key,
        "python": sys.executable,
    }
    return make_project(folder, vm={"provider": "ssh", "ssh": ssh, "max_price": None})


def test_a_wrong_host_key_is_mended_in_run_yaml_alone(tmp_path: Path) -> None:
    """After exit 4 the right key in run.yaml is enough; the wrong one is not kept for ever."""
    with serve(tmp_path / "server") as server:
        _private, other = keys.pair()
        project = on(server, tmp_path / "project", other)
        refused = project.qft("up")
        on(server, tmp_path / "project", server.host_key)

        done = project.qft("up")

        assert refused.returncode == 4, refused.stderr
        assert done.returncode == 0, done.stderr
        project.tidy()
