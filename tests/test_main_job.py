"""The main job, from the command line: rented, trained, evicted, resumed, fetched, given back."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runs import Project, json_of, make_project, wait_until

from infra.journal import Kind


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A tiny project whose machine is evicted once."""
    made = make_project(tmp_path / "project", vm={"rehearse_evictions": [60]})
    yield made
    made.tidy()


def test_one_command_brings_the_adapter_home_through_an_eviction(project: Project) -> None:
    """`qft run` survives an eviction, leaves a plain PEFT adapter and no machine, and rests."""
    done = project.qft("run", "--json")

    assert done.returncode == 0, done.stderr
    receipt = json_of(done)
    assert receipt["evictions"] == 1
    assert receipt["resumes"] >= 1
    assert receipt["before"]["n"] == receipt["after"]["n"] == 6
    assert receipt["usd_per_h_now"] == 0
    assert {Kind.STOP_SEEN, Kind.START_ACCEPTED, Kind.DELETED} <= set(project.kinds())
    assert json_of(project.qft("ls", "--all", "--json")) == []
    assert project.processes() == []
    load = (
        "import sys; from peft import PeftModel;"
        "from transformers import AutoModelForCausalLM as M;"
        "PeftModel.from_pretrained(M.from_pretrained(sys.argv[1]), sys.argv[2]); print('loaded')"
    )
    argv = [sys.executable, "-W", "ignore", "-c", load, "model", str(project.out / "adapter")]
    loaded = subprocess.run(argv, cwd=project.folder, capture_output=True, text=True, check=False)
    assert "loaded" in loaded.stdout, loaded.stderr
    before = project.kinds()
    again = project.qft("run", "--json")
    assert (again.returncode, project.kinds()) == (0, before)
    assert "complete already" in json_of(again)["result"]


def test_an_evicted_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Adapter and per-step losses are the same, byte for byte, with and without an eviction."""
    calm = make_project(tmp_path / "calm")
    rough = make_project(tmp_path / "rough", vm={"rehearse_evictions": [40, 130]})

    assert calm.qft("run").returncode == 0
    done = rough.qft("run", "--json")

    assert json_of(done)["evictions"] == 2
    assert calm.tensors() == rough.tensors()
    assert calm.losses() == rough.losses()


def test_killed_at_random_moments_the_same_command_finishes(tmp_path: Path) -> None:
    """SIGKILL of `qft run` at random moments, each followed by the same command: one adapter."""
    rng = random.Random(20261122)  # noqa: S311  (moments to kill at, no secret)
    project = make_project(tmp_path / "project", vm={"rehearse_evictions": [60]})
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
    project = make_project(tmp_path / "project", train={"steps": 3000})
    first = project.start("train", "--plain")
    try:
        wait_until(lambda: first.poll() is not None or Kind.LAUNCHED in project.kinds())
        second = project.start("train", "--plain")
        assert second.stderr is not None
        assert any("following it" in line for line in second.stderr)  # reads until it is said
        second.send_signal(signal.SIGINT)
        _, said = second.communicate(timeout=120)

        assert second.returncode == 130, said
        assert "qft train tiny" in said
        assert project.kinds().count(Kind.LAUNCHED) == 1
        trainers = [p for p in project.processes() if "trainer" in p.cmdline()]
        assert len([p for p in trainers if "train" in p.cmdline()]) >= 1

        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=120)
        assert first.returncode == 130, said
        assert json_of(project.qft("status", "--json"))["job"] == "running"
    finally:
        first.kill()
        first.communicate()
        project.tidy()


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    """A second `qft run` of a name that is being driven is a usage error that rents nothing."""
    project = make_project(tmp_path / "project", train={"steps": 3000})
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

    assert project.qft("down").returncode == 0
    assert json_of(project.qft("status", "--json"))["summary"] == "machine deallocated"

    trained = project.qft("train", "--resume")
    assert trained.returncode == 0, trained.stderr
    assert json_of(project.qft("status", "--json"))["summary"] == "trained"

    assert project.qft("fetch").returncode == 0
    assert json_of(project.qft("status", "--json"))["summary"] == "fetched"
    assert project.qft("logs").returncode == 0
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


def test_what_comes_after_the_training_works_at_home(project: Project) -> None:
    """Audit before, then report, merge and generate from what came home."""
    audit = project.qft("audit", "--html", str(project.folder / "audit.html"))
    assert "what is learnt" in audit.stdout, audit.stderr
    assert project.qft("run").returncode == 0

    report = project.qft("report")
    merge = project.qft("merge", "--dtype", "float32")
    answer = project.qft("generate", "tiny", "--field", "text=the sky is blue")

    assert report.returncode == merge.returncode == answer.returncode == 0, merge.stderr
    facts = json.loads((project.out / "report.json").read_text())
    assert [one["reason"] for one in facts["evictions"]] == ["evicted"]
    assert "<svg" in (project.out / "report.html").read_text()
    assert (project.out / "merged" / "config.json").exists()
    assert answer.stdout.strip()
    exported = project.qft("export")
    assert exported.returncode == 0, exported.stderr
    assert (project.out / "exported" / "adapter_config.json").exists()
    assert project.qft("export", "--rank", "99").returncode == 2


def alive_machines(project: Project) -> int:
    """How many machines run at this moment."""
    found = set()
    for process in project.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while we looked
            words = process.cmdline()
            found |= {word for word in words if "infra.guest" in words and "vms" in word}
    return len(found)
