"""The main job, from the command line: rented, trained, evicted, resumed, fetched, given back."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import pytest
from support.notified_service import Service
from support.runs import TIMEOUT_S, Project, json_of, make_project, wait_until

from infra.run.journal import Kind

TOKEN = "t0ken-in-the-path"
STEPS = 600
"""So many that no computer is through before its machine, looked at once a second, is evicted."""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A tiny project, with an eviction planned that its short training may outrun."""
    made = make_project(tmp_path / "project", vm={"rehearse_evictions": [60]}, train={"steps": 200})
    yield made
    made.tidy()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A project whose run has come to its end, and what was said."""

    project: Project
    audit: subprocess.CompletedProcess[str]
    run: subprocess.CompletedProcess[str]
    logs: subprocess.CompletedProcess[str]
    """What another terminal followed meanwhile."""

    @classmethod
    def of(cls, project: Project) -> Self:
        """Look at the rows before, as one should, and do the whole run."""
        audit = project.qft("audit", "--html", str(project.folder / "audit.html"))
        running = project.start("run", "--json")
        saved = project.home / "runs" / project.name / "run.json"
        wait_until(lambda: running.poll() is not None or saved.exists())
        logs = project.qft("logs", "-f")
        out, err = running.communicate()
        run = subprocess.CompletedProcess(running.args, running.returncode, out, err)
        return cls(project=project, audit=audit, run=run, logs=logs)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A run that nothing disturbed."""
    made = make_project(tmp_path_factory.mktemp("calm") / "project", train={"steps": STEPS})
    yield Finished.of(made)
    made.tidy()


@pytest.fixture(scope="module")
def notified() -> Iterator[Service]:
    """A web service that is told of the evicted run."""
    made = Service()
    yield made
    made.close()


@pytest.fixture(scope="module")
def evicted(tmp_path_factory: pytest.TempPathFactory, notified: Service) -> Iterator[Finished]:
    """The same run, evicted twice; a service is told, and a tracker named that is not installed."""
    made = make_project(
        tmp_path_factory.mktemp("evicted") / "project",
        vm={"rehearse_evictions": [40, 200]},
        train={"steps": STEPS},
        track=["mlflow"],
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("QFT_NOTIFY_URL", f"{notified.url}/{TOKEN}")
        finished = Finished.of(made)
    yield finished
    made.tidy()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_one_command_brings_the_adapter_home_through_evictions(evicted: Finished) -> None:
    """`qft run` survives evictions, leaves a plain PEFT adapter and no machine, and rests."""
    import peft
    from transformers import AutoModelForCausalLM

    project = evicted.project

    assert evicted.run.returncode == 0, evicted.run.stderr
    receipt = json_of(evicted.run)
    assert receipt["evictions"] == 2
    assert receipt["resumes"] >= 1
    assert receipt["before"]["n"] == receipt["after"]["n"] == 6
    assert receipt["usd_per_h_now"] == 0
    assert {Kind.STOP_SEEN, Kind.START_ACCEPTED, Kind.DELETED} <= set(project.kinds())
    assert json_of(project.qft("ls", "--all", "--json")) == []
    assert project.processes() == []
    base = AutoModelForCausalLM.from_pretrained(project.folder / "model")
    loaded = peft.PeftModel.from_pretrained(base, str(project.out / "adapter"))
    assert any("lora_B" in name for name, _ in loaded.named_parameters())
    before = project.kinds()
    again = project.qft("run", "--json")
    assert (again.returncode, project.kinds()) == (0, before)
    assert "complete already" in json_of(again)["result"]


def test_an_evicted_run_is_posted_and_its_steps_wait_for_a_tracker(
    evicted: Finished, notified: Service
) -> None:
    """Each eviction and the end are one post; a tracker that fails is one warning, and no more."""
    project = evicted.project
    folder = project.home / "runs" / project.name
    (rows,) = folder.glob("tracked/*/rows.jsonl")
    steps = [json.loads(line)["step"] for line in rows.read_text().splitlines()]
    warnings = [line for line in evicted.run.stderr.splitlines() if "tracking:" in line]

    assert notified.events == ["evicted", "evicted", "done"]
    assert (notified.bodies[-1]["run"], notified.bodies[-1]["step"]) == ("tiny", STEPS)
    assert len(warnings) == 1, warnings
    assert "`mlflow-skinny` is not installed" in warnings[0]
    assert "`qft track tiny` sends what is missing" in warnings[0]
    assert steps == list(range(1, STEPS + 1))
    files = [path for place in (folder, project.out) for path in place.rglob("*")]
    assert not [one for one in files if one.is_file() and TOKEN.encode() in one.read_bytes()]
    assert TOKEN not in evicted.run.stderr + evicted.run.stdout


def test_an_evicted_run_is_held_against_its_plan(evicted: Finished) -> None:
    """Receipt and report have what was planned and what it took, of which the parts are all."""
    receipt = json_of(evicted.run)
    assert evicted.project.qft("report").returncode == 0
    report = json.loads((evicted.project.out / "report.json").read_text(encoding="utf-8"))
    page = (evicted.project.out / "report.html").read_text(encoding="utf-8")
    planned, actual = receipt["planned"], receipt["actual"]

    assert planned["card"] == "this computer"
    assert planned["hours"].keys() >= {"train", "evictions", "score before", "score after"}
    assert planned["usd"]["compute"]["likely"] > 0
    assert actual["hours"].keys() >= {"rent", "send", "train", "evictions", "score before"}
    assert sum(actual["hours"].values()) == pytest.approx(receipt["wall_s"] / 3600, rel=0.05)
    assert actual["total_usd"] == pytest.approx(receipt["usd"])
    facts = report["facts"]["plan"]
    assert {key: facts[key]["hours"] for key in ("planned", "actual")} == {
        "planned": planned["hours"],
        "actual": actual["hours"],
    }
    assert "Planned and real time by part" in page


def test_a_log_is_followed_through_evictions(evicted: Finished) -> None:
    """`qft logs -f` goes on until the training ends, and has said all of it, once."""
    assert evicted.logs.returncode == 0, evicted.logs.stderr
    assert evicted.logs.stdout == (evicted.project.out / "trainer.log").read_text()
    assert evicted.logs.stdout.count("resuming after step") == 2


def test_an_evicted_run_ends_with_the_bits_of_an_undisturbed_one(
    calm: Finished, evicted: Finished
) -> None:
    """Adapter and per-step losses are the same, byte for byte, with and without evictions."""
    assert calm.run.returncode == 0, calm.run.stderr
    assert (json_of(calm.run)["evictions"], json_of(evicted.run)["evictions"]) == (0, 2)
    assert calm.project.tensors() == evicted.project.tensors()
    assert calm.project.losses() == evicted.project.losses()


def test_a_full_region_costs_steps_and_not_the_run(calm: Finished, tmp_path: Path) -> None:
    """Evicted, refused for capacity, moved with the checkpoint that came home: the same adapter."""
    rough = make_project(
        tmp_path / "rough",
        vm={"rehearse_evictions": [60], "regions": ["local-1", "local-2"]},
        train={"steps": STEPS},
    )
    process = rough.start("run", "--json")
    try:
        wait_until(lambda: process.poll() is not None or Kind.CREATE_ACCEPTED in rough.kinds())
        market(rough, {"local-1": {"capacity": False}, "local-2": {}})
        out, err = process.communicate(timeout=TIMEOUT_S)

        assert process.returncode == 0, err
        receipt = json.loads(out)
        assert (receipt["evictions"], receipt["exact"]) == (1, True)
        regions = [
            event.data["offer"]["region"]
            for event in rough.events()
            if event.kind is Kind.CREATE_INTENDED
        ]
        assert (regions[0], regions[-1]) == ("local-1", "local-2")
        assert Kind.START_FAILED in rough.kinds()
        assert calm.project.tensors() == rough.tensors()
        assert calm.project.losses() == rough.losses()
        assert json_of(rough.qft("ls", "--all", "--json")) == []
    finally:
        process.kill()
        process.communicate()
        rough.tidy()


def test_killed_at_random_moments_the_same_command_finishes(tmp_path: Path) -> None:
    """SIGKILL of `qft run` at random moments, each followed by the same command: one adapter."""
    rng = random.Random(20261122)  # noqa: S311  (moments to kill at, no secret)
    project = make_project(
        tmp_path / "project", vm={"rehearse_evictions": [60]}, train={"steps": STEPS}
    )
    kills = 0
    try:
        for _ in range(4):
            process = project.start("run", "--plain")
            time.sleep(rng.uniform(0.3, 6.0))
            assert alive_machines(project) <= 1
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.communicate()
        done = project.qft("run", "--json")

        assert done.returncode == 0, done.stderr
        assert kills >= 1
        assert (project.out / "adapter" / "adapter_model.safetensors").exists()
        assert json_of(project.qft("ls", "--all", "--json")) == []
        assert project.processes() == []
    finally:
        project.tidy()


def test_a_second_train_attaches_and_interrupting_it_leaves_the_job(tmp_path: Path) -> None:
    """`qft train` beside another follows it and starts no trainer; Ctrl-C leaves the job."""
    project = make_project(tmp_path / "project", train={"steps": 100_000})
    first = project.start("train", "--plain")
    try:
        wait_until(lambda: first.poll() is not None or Kind.LAUNCHED in project.kinds())
        second = project.start("train", "--plain")
        assert second.stderr is not None
        assert any("following it" in line for line in second.stderr)  # reads until it is said
        second.send_signal(signal.SIGINT)
        _, printed = second.communicate(timeout=TIMEOUT_S)

        assert second.returncode == 130, printed
        assert "qft train tiny" in printed
        assert project.kinds().count(Kind.LAUNCHED) == 1
        assert any({"trainer", "train"} <= set(words) for words in command_lines(project))

        first.send_signal(signal.SIGINT)
        _, printed = first.communicate(timeout=TIMEOUT_S)
        assert first.returncode == 130, printed
        assert json_of(project.qft("status", "--json"))["job"] == "running"
    finally:
        first.kill()
        first.communicate()
        project.tidy()


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    """A second `qft run` of a name that is being driven is a usage error that rents nothing."""
    project = make_project(tmp_path / "project", train={"steps": 100_000})
    first = project.start("run", "--plain")
    try:
        wait_until(lambda: first.poll() is not None or Kind.CREATE_ACCEPTED in project.kinds())
        second = project.qft("run")

        assert second.returncode == 2
        assert "already driving" in second.stderr
        assert project.kinds().count(Kind.CREATE_INTENDED) == 1
    finally:
        first.kill()
        first.communicate()
        project.tidy()


def test_status_is_json_in_every_state(project: Project) -> None:
    """Before, during and after a run, and for an unknown one, stdout of --json parses."""
    before = project.qft("status", "--json")
    assert (before.returncode, "error" in json_of(before)) == (2, True)

    up = project.qft("up")
    assert up.returncode == 0, up.stderr
    assert json_of(project.qft("status", "--json"))["summary"] == "machine running"
    market = project.home / "local" / "market.json"
    market.write_text("no market")
    unseen = json_of(project.qft("status", "--json"))
    assert (unseen["machine"]["power"], "market file" in unseen["trouble"]) == (None, True)
    market.unlink()

    assert project.qft("down").returncode == 0
    assert json_of(project.qft("status", "--json"))["summary"] == "machine deallocated"

    trained = project.qft("train", "--resume")
    assert trained.returncode == 0, trained.stderr
    assert json_of(project.qft("status", "--json"))["summary"] == "trained"

    assert project.qft("fetch").returncode == 0
    assert json_of(project.qft("status", "--json"))["summary"] == "fetched"
    printed = project.qft("logs").stdout
    logged = project.qft("logs", "--json")
    assert logged.returncode == 0, logged.stdout
    assert json_of(logged)["lines"] == printed.splitlines()
    there = project.qft("verify", "--steps", "5", "--json")
    assert there.returncode == 0, there.stderr
    assert (json_of(there)["equal"], json_of(there)["where"]) == (True, "on the machine")

    down = project.qft("down", "--delete", "--json")
    assert json_of(down)[0]["left"] == []
    assert json_of(project.qft("status", "--json"))["summary"] == "done"

    here = project.qft("verify", "--json")
    assert here.returncode == 0, here.stderr
    assert (json_of(here)["equal"], json_of(here)["where"]) == (True, "on this computer")
    scores = json_of(project.qft("eval", "--json"))
    again = project.qft("eval", "--again", "--json")
    assert again.returncode == 0, again.stderr
    assert json_of(again)["after"]["value"] == scores["after"]["value"]


def test_what_comes_after_the_training_works_at_home(evicted: Finished) -> None:
    """Audit before, then report (also again), merge and generate from what came home."""
    project = evicted.project
    assert "what is learnt" in evicted.audit.stdout, evicted.audit.stderr
    assert (project.folder / "audit.html").exists()
    assert "`qft generate tiny --field text='...'`" in project.qft("run").stderr
    assert "checkpoint at home" not in project.qft("status").stdout

    assert project.qft("report").returncode == 0
    report = project.qft("report")
    merge = project.qft("merge", "--dtype", "float32")
    answer = project.qft("generate", "tiny", "--field", "text=the sky is blue")

    assert report.returncode == merge.returncode == answer.returncode == 0, merge.stderr
    facts = json.loads((project.out / "report.json").read_text())
    assert [one["reason"] for one in facts["evictions"]] == ["evicted", "evicted"]
    assert "<svg" in (project.out / "report.html").read_text()
    assert (project.out / "merged" / "config.json").exists()
    assert answer.stdout.strip()
    exported = project.qft("export")
    assert exported.returncode == 0, exported.stderr
    assert (project.out / "exported" / "adapter_config.json").exists()
    assert project.qft("export", "--rank", "99").returncode == 2


def market(project: Project, regions: dict[str, dict[str, object]]) -> None:
    """Change the spot market that this project's machines are rented in."""
    path = project.home / "local" / "market.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"version": 1, "regions": regions}))
    fresh.replace(path)


def alive_machines(project: Project) -> int:
    """How many machines run at this moment."""
    machines = [words for words in command_lines(project) if "infra.local.vm_process" in words]
    return len({word for words in machines for word in words if "vms" in word})


def command_lines(project: Project) -> list[list[str]]:
    """The command line of every process that works for a machine of this project."""
    found = []
    for process in project.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            found.append(process.cmdline())
    return found
