"""The local market tells what a file says, at the moment that it says it for."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BadRequest, NoCapacity, PriceAboveCap
from infra.local.market import RegionQuote, read_market

START = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
DAY: dict[str, Any] = {
    "version": 1,
    "started_at": START.isoformat(),
    "regions": {
        "north": {
            "spot_usd_per_h": 0.1,
            "on_demand_usd_per_h": 0.5,
            "changes": [
                {"after_s": 90, "capacity": False},
                {"after_s": 60, "spot_usd_per_h": 0.4},
                {"after_s": 120, "capacity": True},
            ],
        },
        "south": {"capacity": False},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A market file."""
    file = tmp_path / "market.json"
    file.write_text(json.dumps(DAY))
    return file


@pytest.mark.parametrize(
    ("elapsed_s", "price", "capacity"),
    [(-5, 0.1, True), (59.9, 0.1, True), (60, 0.4, True), (90, 0.4, False), (1e6, 0.4, True)],
)
def test_changes_hold_from_their_moment(
    file: Path, elapsed_s: float, price: float, *, capacity: bool
) -> None:
    """Each change alters only what it names, from its second on, in the order of time."""
    market = read_market(file, START.timestamp() + elapsed_s)

    assert market.quote("north") == RegionQuote(
        spot_usd_per_h=price, on_demand_usd_per_h=0.5, capacity=capacity
    )


def test_time_runs_from_the_last_write_by_default(file: Path) -> None:
    """Without a start, changes count from when the file was written."""
    file.write_text(json.dumps({key: DAY[key] for key in ("version", "regions")}))
    os.utime(file, (5000, 5000))

    assert read_market(file, 5059).price("north", "T4") == 0.1
    assert read_market(file, 5061).price("north", "T4") == 0.4


def test_without_a_file_every_region_is_open(tmp_path: Path) -> None:
    """A region named for a real cloud can be rehearsed, at the reference price of the GPU."""
    market = read_market(tmp_path / "market.json", 0.0)

    market.check_available("westus2", "A10", 1.0)
    assert market.price("westus2", "A10") == 0.59136
    assert market.regions == ("local-1", "local-2")


def test_refusals_are_those_of_a_cloud(file: Path) -> None:
    """No region, no capacity and a low cap are three different errors, told alike as obstacles."""
    market = read_market(file, START.timestamp())

    with pytest.raises(BadRequest, match="only north, south"):
        market.check_available("west", "T4", None)
    with pytest.raises(NoCapacity, match="south"):
        market.check_available("south", "T4", None)
    with pytest.raises(PriceAboveCap, match=r"\$0\.1000 per hour, above the cap of \$0\.0500"):
        market.check_available("north", "T4", 0.05)
    assert market.blocked_by("north", "T4", 0.1) == ""
    assert market.blocked_by("north", "T4", 0.05) == "price above the cap of $0.0500 per hour"
    assert market.blocked_by("south", "T4", None) == "no capacity"
    assert "no region" in market.blocked_by("west", "T4", None)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"regions": []}',
        '{"regions": {"a": 1}}',
        '{"regions": {"a": {"price": 1}}}',
        '{"regions": {"a": {"spot_usd_per_h": "cheap"}}}',
        '{"regions": {"a": {"changes": [{"spot_usd_per_h": 1}]}}}',
        '{"regions": {"a": {"changes": [{"after_s": 1, "capacty": false}]}}}',
        '{"started_at": "yesterday", "regions": {}}',
    ],
)
def test_wrong_file_is_named(file: Path, text: str) -> None:
    """A file that is no market is refused by name, and misspelt keys are not ignored."""
    file.write_text(text)

    with pytest.raises(BadRequest, match=r"market\.json` is not a market file") as caught:
        read_market(file, 2_000_000_000.0)

    assert "docs/local.md" in caught.value.hint
