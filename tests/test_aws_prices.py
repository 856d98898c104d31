"""What AWS says of prices, zones, quotas and interruptions is read with care, and kept on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.aws.advisor import Advisor, bands_in
from infra.aws.context import AwsContext
from infra.aws.offerings import zones_in
from infra.aws.prices import ZonePrice, prices_in
from infra.aws.quota import SpotQuota
from infra.aws.sdk import AwsClients
from infra.aws.settings import AwsSettings

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
PAGE = {
    "ranges": [
        {"index": 0, "label": "<5%", "dots": 0, "max": 5},
        {"index": 1, "label": "5-10%", "dots": 1, "max": 11},
        {"index": 4, "label": ">20%", "dots": 4, "max": 100},
    ],
    "spot_advisor": {
        "us-east-1": {
            "Linux": {"g5.xlarge": {"r": 4, "s": 59}, "g4dn.xlarge": {"r": 0, "s": 64}},
            "Windows": {"g5.2xlarge": {"r": 1, "s": 40}},
        },
        "eu-west-1": {"Linux": {"m5.large": {"r": 1, "s": 70}, "g5.xlarge": {"r": 9}}},
    },
}


class Noon:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now_s = NOON.timestamp()

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now_s


def context(state_dir: Path, clock: Noon) -> AwsContext:
    """An account that nobody asks anything."""
    settings = AwsSettings()
    return AwsContext(
        settings=settings,
        clients=AwsClients(settings),
        state_dir=state_dir,
        clock=clock,
        sleep=lambda _: None,
        find_address=lambda: "",
    )


def row(price: str, zone: str = "us-east-1a", **changes: Any) -> dict[str, Any]:
    """A row of the price history."""
    return {
        "InstanceType": "g5.xlarge",
        "AvailabilityZone": zone,
        "ProductDescription": "Linux/UNIX",
        "SpotPrice": price,
        "Timestamp": NOON,
        **changes,
    }


def test_the_newest_price_of_each_zone_holds() -> None:
    """The history has several prices of a zone: the last one is in force."""
    rows = [
        row("0.50", Timestamp=NOON.replace(hour=3)),
        row("0.41"),
        row("0.60", Timestamp=NOON.replace(hour=5)),
        row("0.39", "us-east-1b"),
    ]

    assert prices_in(rows, "us-east-1") == (
        ZonePrice(size="g5.xlarge", zone="us-east-1a", usd_per_h=0.41),
        ZonePrice(size="g5.xlarge", zone="us-east-1b", usd_per_h=0.39),
    )


@pytest.mark.parametrize(
    "odd",
    [
        row("nan"),
        row("-1"),
        row("0"),
        row("1e9"),
        row(""),
        row("0.4", "us-east-1-dfw-2a"),
        row("0.4", "us-west-2a"),
        row("0.4", "../../etc"),
        row("0.4", ProductDescription="Windows"),
        row("0.4", InstanceType="m5.large"),
        {},
    ],
)
def test_what_is_no_price_of_an_ordinary_zone_is_left_out(odd: dict[str, Any]) -> None:
    """Other products, other places and numbers that are no prices do not become offers."""
    assert prices_in([odd], "us-east-1") == ()


def test_zones_are_those_of_the_region() -> None:
    """Local and wavelength zones are rented otherwise, and are not offered."""
    rows = [
        {"InstanceType": "g5.xlarge", "Location": zone}
        for zone in ("us-east-1b", "us-east-1a", "us-east-1-wl1-bos-wlz-1", "use1-az3")
    ]

    assert zones_in(rows, "us-east-1") == {"g5.xlarge": ["us-east-1a", "us-east-1b"]}


def test_bands_are_read_by_the_labels_of_the_page() -> None:
    """The numbers of the page stand for its labels; sizes of no interest are skipped."""
    assert bands_in(PAGE) == {
        ("g5.xlarge", "us-east-1"): "20+",
        ("g4dn.xlarge", "us-east-1"): "0-5",
    }


@pytest.mark.parametrize(
    "page", [None, [], "x", {}, {"ranges": 3}, {"spot_advisor": []}, {"spot_advisor": {"r": 1}}]
)
def test_a_page_of_another_make_gives_no_bands(page: Any) -> None:
    """Whatever the address answers is no reason to fail."""
    assert bands_in(page) == {}


def test_the_page_of_bands_is_fetched_once_a_day(tmp_path: Path) -> None:
    """The page has a megabyte: its answer is kept, and an old one serves where none comes."""
    clock, fetches = Noon(), 0

    def fetch(_: str) -> Any:
        nonlocal fetches
        fetches += 1
        return PAGE

    for hours in (0, 23, 2):
        clock.now_s += hours * 3600.0
        found = Advisor(context=context(tmp_path, clock), fetch=fetch).bands()
        assert found[("g5.xlarge", "us-east-1")] == "20+"
    assert fetches == 2

    clock.now_s += 90 * 86400.0
    assert Advisor(context=context(tmp_path, clock)).kept() == found
    (tmp_path / "interruption-rates.json").write_text('{"at_s": 1, "rows": [["a"]]}')
    assert Advisor(context=context(tmp_path, clock)).kept() is None


def test_a_quota_of_nothing_is_counted_in_vcpus() -> None:
    """A new account may run 0 vCPUs: how many are needed, and where to ask for them, is told."""
    quota = SpotQuota(region="eu-west-1", limit=0, used=0)

    assert quota.shortage(4) == (
        "the spot quota of eu-west-1 leaves 0 of 4 vCPUs needed (0 of 0 in use); ask for more at "
        "https://eu-west-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/"
        "L-3819A6DF"
    )


def test_a_quota_is_counted_in_machines_of_a_size() -> None:
    """What runs takes its vCPUs away; a limit that was lowered below them leaves nothing."""
    quota = SpotQuota(region="r", limit=12, used=4)

    assert (quota.left, quota.shortage(8)) == (8, "")
    assert "8 of 16 vCPUs" in quota.shortage(16)
    assert SpotQuota(region="r", limit=4, used=8).left == 0
