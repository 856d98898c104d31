"""Reads what an account may rent and at what price; what does not answer soon is left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from infra.aws.advisor import Advisor
from infra.aws.context import AwsContext
from infra.aws.errors import RegionNotEnabledError
from infra.aws.offerings import Offerings
from infra.aws.prices import RegionPrices, SpotPrices
from infra.aws.quota import SpotQuota, read_quota
from infra.catalog.aws_regions import ENABLED_REGIONS
from infra.errors import NotAllowed, ProviderError
from infra.renting.gather import Findings, run_all
from infra.untrusted import table

HOME_REGION = "us-east-1"
NOT_ENABLED = "not-opted-in"


@dataclass(kw_only=True)
class AwsFindings(Findings):
    """What was learnt of an account in time, by region."""

    error: NotAllowed | None = None
    """Why the account cannot be asked: nobody is signed in, or the configuration is wrong."""
    prices: dict[str, RegionPrices] = field(default_factory=dict)
    vcpus: dict[str, SpotQuota] = field(default_factory=dict)
    not_enabled: dict[str, str] = field(default_factory=dict)
    """Why nothing can be rented in a region that the account has not enabled."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Reads prices, zones, quotas and interruption rates."""

    context: AwsContext
    prices: SpotPrices
    offerings: Offerings
    advisor: Advisor

    def gather(self, sizes: Sequence[str], regions: Sequence[str]) -> AwsFindings:
        """Ask everything at once and return what came within `offers_wait_s` of real time.

        A few requests a region, whatever the number of sizes and zones. Of what did not come, the
        answers of earlier days stand in, except for quotas.
        """
        found = AwsFindings()
        account = _Once(partial(self._account, found))
        enabled = _Once(partial(self._enabled, found, regions))

        def ask(region: str, job: Callable[[AwsFindings, str], None]) -> None:
            account()
            if found.error is None and region not in ENABLED_REGIONS:
                enabled()
            if found.error is None and region not in found.not_enabled:
                _ask_region(found, region, job)

        kinds = (partial(self._prices, sizes), self._zones, self._quota)
        jobs: list[Callable[[], None]] = [lambda: found.bands.update(self.advisor.bands())]
        jobs += [partial(ask, region, one) for one in kinds for region in regions]
        run_all(jobs, found.problems, wait_s=self.context.settings.offers_wait_s)
        in_time = replace(  # late answers may still be added to the original
            found,
            bands=dict(found.bands),
            zones=dict(found.zones),
            prices=dict(found.prices),
            vcpus=dict(found.vcpus),
            not_enabled=dict(found.not_enabled),
        )
        self._fill_from_disk(in_time, sizes, regions)
        return in_time

    def _account(self, found: AwsFindings) -> None:
        """Find out whether the account can be asked: each question would fail by itself else."""
        try:
            self.context.account()
        except NotAllowed as error:
            found.error = error
            found.problems.append(str(error))
        except ProviderError as error:  # a hiccup: other services may answer
            found.problems.append(str(error))

    def _enabled(self, found: AwsFindings, regions: Sequence[str]) -> None:
        """Find out which of the regions that have to be enabled are not."""
        try:
            answer = self.context.clients.call(
                "ec2",
                HOME_REGION,
                "describe_regions",
                doing="list which regions the account has enabled",
                RegionNames=[one for one in regions if one not in ENABLED_REGIONS],
                AllRegions=True,
            )
        except ProviderError as error:  # the region itself says so, too
            found.problems.append(str(error))
            return
        for row in map(table, answer.get("Regions") or []):
            if row.get("OptInStatus") == NOT_ENABLED:
                region = str(row.get("RegionName"))
                found.not_enabled[region] = not_enabled(region)

    def _prices(self, sizes: Sequence[str], found: AwsFindings, region: str) -> None:
        found.prices[region] = self.prices.read(region, sizes)

    def _zones(self, found: AwsFindings, region: str) -> None:
        found.zones[region] = self.offerings.zones(region)

    def _quota(self, found: AwsFindings, region: str) -> None:
        found.vcpus[region] = read_quota(self.context.clients, region)

    def _fill_from_disk(
        self, found: AwsFindings, sizes: Sequence[str], regions: Sequence[str]
    ) -> None:
        """Take what earlier calls left on disk for what did not come now."""
        if not found.bands:
            found.bands.update(self.advisor.kept() or {})
        for region in regions:
            if region not in found.prices and (prices := self.prices.kept(region, sizes)):
                found.prices[region] = prices
            if region not in found.zones and (zones := self.offerings.kept(region)):
                found.zones[region] = zones


def not_enabled(region: str) -> str:
    """Say that the account has not enabled a region, and how to."""
    return (
        f"the account has not enabled the region {region}: "
        f"`aws account enable-region --region-name {region}`"
    )


def _ask_region(found: AwsFindings, region: str, job: Callable[[AwsFindings, str], None]) -> None:
    try:
        job(found, region)
    except RegionNotEnabledError:
        found.not_enabled[region] = not_enabled(region)


class _Once:
    """Runs something once, whoever of many threads comes first; the others wait for its end."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._is_done = False
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if not self._is_done:
                self._is_done = True
                self._run()
