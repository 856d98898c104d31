"""`qft plan` on Azure answers in seconds, shows what a choice needs, and creates nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from arm import Cloud, Disruption, DisruptionKind
from arm.harness import T4, azure
from arm.replies import Reply
from arm.runner import CliRunner, cli_runner
from support.runs import Project, json_of, make_project

from infra.azure import AzureProvider, AzureSettings
from infra.azure.permissions import THREAD
from infra.offer import Want
from infra.renting.gather import GATHER_THREAD

REGIONS = ["eastus", "westus2", "westus3"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with three regions."""
    return make_project(
        tmp_path_factory.mktemp("plan"),
        vm={"provider": "azure", "regions": REGIONS},
        budget={"hours": 4, "usd": None},
    )


@pytest.fixture
def runner(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[CliRunner]:
    """A command line in that project, with a cloud of its own."""
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(project.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def test_plan_tells_everything_in_three_seconds_and_only_reads(project: Project) -> None:
    """The whole program, from its start to its end: offers in order, switches, the worst case.

    The first plan of a computer may also fetch what it then keeps on disk; the second is timed,
    by its own work, because this computer may be busy with other tests.
    """
    with Cloud(pace=1.0) as cloud, mock.patch.dict(os.environ, cloud.environment()):
        cloud.market.bands[T4.lower(), "eastus"] = "0-5"
        cloud.market.restricted.add((T4.lower(), "westus3"))
        with mock.patch.dict(os.environ, {"PYTHONPROFILEIMPORTTIME": "1"}):
            imported = project.qft("plan", "--json").stderr
        before = os.times()

        done = project.qft("plan", "--json")

        after = os.times()
        worked_s = after.children_user + after.children_system
        worked_s -= before.children_user + before.children_system
        requests = {r.method for r in cloud.requests if "oauth2" not in r.path.lower()}
        posted = [r.path.lower() for r in cloud.requests if r.method == "POST"]
        assert cloud.leftovers() == []
    assert done.returncode == 0, done.stderr
    assert worked_s < 3.0, f"{worked_s:.1f} s"
    assert "azure.mgmt.compute" in imported
    assert [one for one in ("azure.mgmt.network", "torch", "paramiko") if one in imported] == []
    assert requests <= {"GET", "POST"}
    reads = ("oauth2", "resourcegraph", "placementscores")
    assert [path for path in posted if not any(word in path for word in reads)] == []
    page = json_of(done)
    first, *others = page["offers"]
    assert (first["size"], first["region"], first["eviction_band"]) == (T4, "eastus", "0-5")
    assert first["spot_usd_per_h"] == 0.149174
    assert first["priced_at"]
    assert 0 <= first["price_age_s"] < 900
    assert first["quota_left"] == 25
    blocked = [bool(one["blocked_by"]) for one in others]
    assert blocked == sorted(blocked)
    assert any("closed to this subscription" in one["blocked_by"] for one in others)
    assert page["worst_case_usd"] == 1.0
    assert {one["name"]: one["holds"] for one in page["switches"]} == {
        "price cap": True,
        "auto-shutdown": True,
        "self-release": True,
    }


def test_plan_waits_three_seconds_at_most_for_slow_sources(runner: CliRunner) -> None:
    """With the list of sizes taking longer than anybody waits, the page still comes in time."""
    runner.qft("plan")  # the SDK's own first use
    slow = Disruption(kind=DisruptionKind.SLOW, path="/skus$", times=9, slow_s=600)
    runner.harness.cloud.disruptions.add(slow)
    runner.harness.changes = {"offers_wait_s": 0.5}
    (runner.home / "azure" / "sizes" / "eastus.json").unlink()

    result = runner.qft("plan", "--json")
    late = [one for one in threading.enumerate() if one.name == GATHER_THREAD]
    slow.enough.set()

    assert late
    assert result.code == 0, result.err
    assert AzureSettings().offers_wait_s < 3


def test_plan_does_not_wait_for_the_permissions_either(tmp_path: Path) -> None:
    """Rights that do not come in time are told as not known, however long Azure asks to wait."""
    reply = Reply(status=429, headers={"Retry-After": "60"})
    disruption = Disruption(kind=DisruptionKind.ANSWER, reply=reply, times=99, path="/permissions$")
    later = threading.Event()

    def sleep(_: float) -> None:
        later.wait()

    with azure(tmp_path) as harness:
        settings = harness.settings(offers_wait_s=0.5)
        provider = AzureProvider(settings, tmp_path / "state", sleep=sleep)
        harness.cloud.disruptions.add(disruption)
        provider.context.arm.warm()

        provider.offers(Want(gpu="T4", regions=REGIONS))
        safeguards = provider.preview_safeguards(Want(gpu="T4"), until_s=time.time() + 3600)

        assert THREAD in {one.name for one in threading.enumerate()}
        assert {one.name for one in safeguards if one.is_set} == set()
        assert "did not say within 0.5 s" in safeguards[1].detail
        later.set()
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join()
        provider.close()


def test_plan_says_which_safeguard_cannot_be_set(runner: CliRunner) -> None:
    """A Contributor reads that the machine cannot release itself, and what the rest comes to."""
    runner.harness.cloud.world.may_assign = False

    result = runner.qft("plan", "--all")
    short = runner.qft("plan").out

    assert result.code == 0, result.err
    missing = " ".join(result.out.split()).split("will NOT end the bill: ")[1]
    assert "self-release" in missing
    assert "to get it: ask for `User Access Administrator`" in missing
    assert missing.startswith("self-release")
    words = " ".join(result.out.split())
    assert "will end the bill: auto-shutdown" in words
    assert "then $0.44 a day for disk and address" in words
    assert "at most $1.00 of compute (4.0 h at 0.25 USD/h until" in words
    assert "4 machine hours, 20 evictions; at most $1.00 while `qft` watches" in words
    assert "will end the bill without it: price cap, auto-shutdown\n" in short
    assert "then $0.44 a day" not in short


def test_up_says_which_safeguards_are_set_and_what_they_leave_possible(runner: CliRunner) -> None:
    """After renting, each switch that was set is told with the bill that it leaves possible."""
    runner.harness.cloud.world.may_assign = False

    result = runner.qft("up", "--plain")
    shown = runner.qft("status", "tiny")

    assert result.code == 0, result.err
    assert "ends the bill: price cap: Azure evicts the machine before" in result.err
    assert "ends the bill: auto-shutdown: Azure deallocates the machine at" in result.err
    assert "at most $1.00 of compute (4.0 h at 0.25 USD/h until" in result.err
    (missing,) = [one for one in result.err.splitlines() if "does NOT end the bill: " in one]
    assert "self-release" in missing
    assert "AuthorizationFailed" in missing
    assert "to get it: ask for `User Access Administrator`" in missing
    assert "worst case of the whole run: $1.00 (budget)" in result.err
    assert "auto-shutdown: Azure deallocates" in shown.out


def test_plan_tells_how_old_a_price_is(runner: CliRunner) -> None:
    """A price from disk is shown with its age, in a unit that can be read."""
    assert "0 min old, from retail prices api" in runner.qft("plan").out
    runner.harness.advance(600)
    assert "10 min old, from retail prices api" in runner.qft("plan").out

    reply = Reply(status=503, body=None)
    disruption = Disruption(
        kind=DisruptionKind.ANSWER, path="/retail/prices", times=99, reply=reply
    )
    runner.harness.cloud.disruptions.add(disruption)
    runner.harness.advance(5 * 3600)
    assert "5 h old, from retail prices api" in runner.qft("plan").out
    shutil.rmtree(runner.home)
    listed = " ".join(runner.qft("plan", "--all").out.split())
    assert " days old, from catalog of " in listed


def test_doctor_shows_the_fix_of_what_only_limits_and_fails_without_quota(
    runner: CliRunner,
) -> None:
    """What a run can do without is a warning with its fix; no quota anywhere fails, exit code 2."""
    runner.harness.cloud.world.may_assign = False
    runner.harness.cloud.market.cores["eastus"] = 3

    some, result = runner.qft("doctor"), runner.qft("doctor", "--json")
    runner.harness.cloud.market.spot_cores = 3
    none = runner.qft("doctor")

    assert (some.code, result.code, none.code) == (0, 0, 2)
    lines = some.out.splitlines()
    warned = [line.split(":")[0] for line in lines if line.startswith("warn")]
    assert warned == ["warn  self-release", "warn  spot quota in eastus"]
    assert "      fix: ask for `User Access Administrator`" in lines
    assert len([line for line in lines if "fix: ask for more: https://portal" in line]) == 1
    assert len([line for line in none.out.splitlines() if line.startswith("FAIL  spot")]) == 3
    found = {one["name"]: (one["ok"], one["required"]) for one in json.loads(result.out)}
    assert found["spot quota in eastus"] == (False, False)
    assert found["credentials"] == (True, True)


def test_doctor_tells_of_azure_before_there_is_a_run_yaml(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by name it looks at the account for a T4 in the usual regions; a wrong name is told."""
    monkeypatch.chdir(tmp_path)

    local, requests = (
        runner.qft("doctor", "--json"),
        runner.qft("doctor", "--provider", "azure", "--json"),
    )
    wrong, bare = (runner.qft("doctor", "--provider", name) for name in ("gcp", "ssh"))

    assert "credentials" not in local.out
    names = {one["name"] for one in json.loads(requests.out)}
    assert requests.code == 0, requests.out
    assert {"credentials", "offer type", "spot quota in eastus", "your address"} <= names
    assert not {"asyncssh", "config"} & names
    assert (wrong.code, bare.code) == (2, 2)
    assert "it is `local`, `azure`, `aws` or `ssh`" in wrong.err
    assert "into a run.yaml" in bare.err


@pytest.mark.parametrize("command", [("plan",), ("up", "--plain")], ids=["plan", "up"])
def test_gpu_that_azure_does_not_have_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """`A10G` is rented as the A10, and whoever asked for it reads so before that."""
    vm = {"provider": "azure", "gpu": "A10G", "regions": ["eastus"], "max_price": 2.0}
    folder = make_project(tmp_path / "project", vm=vm).folder
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(folder, tmp_path / "home", harness, capsys) as runner,
    ):
        result = runner.qft(*command)

    assert result.code == 0, result.err
    assert "note: A10G is the name of a card that only AWS rents out" in result.out + result.err
