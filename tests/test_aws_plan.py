"""`qft plan` on AWS shows places zone by zone, says what stands in the way, and creates nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ec2.harness import A10G, T4, aws
from ec2.runner import CliRunner, cli_runner
from support.runs import Project, make_project

from commands.runs.config import load
from commands.runs.planning.pricing import priced_offer, priced_offers
from infra.config import AwsTable
from infra.offer import Want

REGIONS = ["us-west-2", "us-east-1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two regions, which asks for the card that AWS does not have."""
    return make_project(
        tmp_path_factory.mktemp("plan"),
        vm={"provider": "aws", "gpu": "A10", "regions": REGIONS, "max_price": 0.6},
        budget={"hours": 4, "usd": None},
    )


@pytest.fixture
def runner(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[CliRunner]:
    """A command line in that project, with an account of its own."""
    with (
        aws(tmp_path / "unused") as harness,
        cli_runner(project.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def test_plan_lists_zones_with_the_month_of_their_interruptions(runner: CliRunner) -> None:
    """The user's regions in order, each zone with its price; the A10G stands for the A10, told."""
    runner.harness.cloud.market.bands[A10G, "us-west-2"] = 4

    result, page = runner.qft("plan"), json.loads(runner.qft("plan", "--json").out)

    assert result.code == 0, result.err
    assert "us-west-2/us-west-2a" in result.out
    assert "20+ %/month" in result.out
    assert "note: AWS rents out no A10; here it means the A10G" in result.out
    first = page["offers"][0]
    assert (first["size"], first["zone"], first["gpu"]) == (A10G, "us-west-2a", "A10G")
    assert (first["eviction_band"], first["eviction_period"]) == ("20+", "month")
    assert first["quota_left"] == 16
    assert runner.harness.cloud.leftovers() == []


def test_a_new_account_reads_what_to_ask_for(runner: CliRunner) -> None:
    """With a quota of 0 nothing can be rented: 0 of 4 vCPUs, and the page of each region."""
    runner.harness.cloud.market.spot_vcpus = 0

    result = runner.qft("plan", "--all")

    words = " ".join(result.out.split())
    for region in REGIONS:
        assert f"the spot quota of {region} leaves 0 of 4 vCPUs needed" in words
    assert "us-east-1.console.aws.amazon.com/servicequotas" in result.out.replace("\n", "")


def test_without_a_login_the_plan_says_how_to_sign_in(runner: CliRunner) -> None:
    """The catalog's prices are shown with their date, and nobody is asked twice."""
    runner.harness.cloud.expire_credentials()

    result = runner.qft("plan")

    assert "aws sso login" in result.out + result.err
    assert "half of on demand" in " ".join(result.out.split())


def test_hours_on_aws_follow_its_own_machines(runner: CliRunner, project: Project) -> None:
    """EC2 hands a machine out sooner than Azure; its image brings the driver, plain Ubuntu none."""
    loaded = load(project.config)
    (offer, *_) = runner.harness.provider().offers(Want(gpu="A10", regions=REGIONS))
    plain = loaded.config.vm.model_copy(update={"aws": AwsTable(image="ubuntu")})
    on_ubuntu = replace(loaded, config=loaded.config.model_copy(update={"vm": plain}))

    job, azure_job, ubuntu_job = (
        priced_offer(config, one).job
        for config, one in (
            (loaded, offer), (loaded, replace(offer, provider="azure")), (on_ubuntu, offer),
        )
    )  # fmt: skip

    assert job is not None
    assert azure_job is not None
    assert ubuntu_job is not None
    parts, azure_parts = job.parts, azure_job.parts
    assert (parts[0].name, azure_parts[0].name) == ("rent", "rent")
    assert parts[0].hours.likely < azure_parts[0].hours.likely
    assert "EC2" in parts[0].source
    assert ubuntu_job.parts[1].hours.likely > parts[1].hours.likely


def test_many_offers_are_priced_as_each_alone(runner: CliRunner, project: Project) -> None:
    """What the job needs is found once for a card; a band or a card of its own is found anew."""
    loaded = load(project.config)
    provider = runner.harness.provider()
    offers = provider.offers(Want(gpu="A10", regions=REGIONS))[:3]
    offers += [replace(offers[0], eviction_band="20+", eviction_period="hour")]
    offers += provider.offers(Want(gpu="T4", regions=REGIONS[:1]))[:2]

    assert priced_offers(loaded, offers) == [priced_offer(loaded, one) for one in offers]
    assert {one.offer.size for one in priced_offers(loaded, offers)} >= {T4, A10G}
