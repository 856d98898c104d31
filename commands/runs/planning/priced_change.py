"""Applies a change to a run's config and prices it again, as a plan itself is; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError

from commands.runs.config import LoadedConfig, RunConfig
from commands.runs.planning.figures import dollars, hourly
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.ranking import JobOffer
from infra.offer import Offer
from infra.renting.prices import price_obstacle
from infra.vm_choices import gpu_faults, region_faults
from trainer.config import TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.advice import Estimate, Override

CENTS = 100
ABOVE_CAP = "above the cap"
"""What providers say of an offer that only its price blocks."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One change that makes a run go ahead, and what it brings."""

    change: str
    """Lines of run.yaml, each a key and its value, with `and` between them."""
    effect: str
    keeps_result: bool
    """Whether the adapter is the same but for rounding."""

    @property
    def text(self) -> str:
        """The advice as a line to print."""
        same = "; the result stays the same" if self.keeps_result else ""
        return f"{self.change}: {self.effect}{same}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """How a changed config is estimated and priced: as the plan itself was."""

    price: Callable[[LoadedConfig, Offer], JobOffer]
    need: Callable[[JobEstimate], Estimate | None]
    """The estimate of memory on the card of a job; None if there is none."""
    shape: Shape | None
    """The sizes of the base; None if they are unknown."""
    longest: int | None = None
    """The tokens of the longest row, before it is cut; None if that is unknown."""
    longer_share: Callable[[int], float] | None = None
    """Which share of the rows is longer than so many tokens; None if that is unknown."""
    other_bases: Sequence[str] = ()
    """Ids of smaller bases of the same family, the largest first."""


def with_overrides(loaded: LoadedConfig, overrides: Sequence[Override]) -> LoadedConfig | None:
    """Return a config with other values for some keys; None if that is no config."""
    tables: dict[str, Any] = loaded.config.model_dump(mode="json", exclude_none=True)
    for one in overrides:
        table, _, key = one.key.partition(".")
        if key:
            tables.setdefault(table, {})[key] = one.value
        else:
            tables[table] = one.value
    try:
        config = RunConfig.model_validate(tables)
        TrainerConfig.model_validate(config.trainer_tables)
    except ValidationError:
        return None
    if gpu_faults(tables["vm"]) or region_faults(tables["vm"]):
        return None
    return replace(loaded, config=config)


def with_card(loaded: LoadedConfig, offer: Offer) -> list[Override]:
    """Return what selects the card of an offer; its region, too, where those named lack it."""
    card = Override(key="vm.gpu", value=offer.gpu)
    if with_overrides(loaded, [card]) is not None:
        return [card]
    return [card, Override(key="vm.regions", value=[offer.region])]


def priced_change(
    loaded: LoadedConfig, overrides: Sequence[Override], offer: Offer, pricing: Pricing
) -> JobOffer | None:
    """Return what a changed job needs and costs on an offer; None if that is no config.

    An offer whose price alone is in the way is free under a higher cap.
    """
    changed = with_overrides(loaded, overrides)
    if changed is None:
        return None
    price, cap = offer.spot_usd_per_h, changed.config.vm.max_price
    # What never clears, such as a quota, is told before a price; the simulated cloud has no such.
    passes = offer.clears or ABOVE_CAP in offer.blocked_by
    if passes and price_obstacle(price, loaded.config.vm.max_price):
        offer = replace(offer, blocked_by=price_obstacle(price, cap))
    return pricing.price(changed, offer)


def lines_of(overrides: Sequence[Override]) -> str:
    """Return overrides as the lines to type."""
    return " and ".join(f"`{one}`" for one in overrides)


def rows_cut(tables: TrainerConfig, overrides: Sequence[Override], pricing: Pricing) -> str:
    """Say how many rows a shorter limit touches, if that is known."""
    limit = next((one.value for one in overrides if one.key == "train.max_length"), None)
    if not isinstance(limit, int) or pricing.longer_share is None:
        return ""
    share = pricing.longer_share(limit)
    if share == 0:
        return "; no row is that long"
    what = {"cut": "cuts", "drop": "leaves out"}.get(str(tables.data.too_long), "refuses")
    return f"; {what} {max(share, 0.01):.0%} of the rows"


def costs_text(one: JobOffer | None) -> str:
    """Say what a job costs in all, and at which price."""
    if one is None or one.cost is None:
        return "what it costs is not known"
    several = f"{one.job.nodes} × " if one.job is not None and one.job.nodes > 1 else ""
    price = f"{several}{hourly(one.offer.spot_usd_per_h)}/h"
    return f"about {dollars(one.cost.total.likely)} in all at {price}"


def rounded_up(value: float, parts: int = CENTS) -> float:
    """Return a figure rounded up to a whole number of parts, cents by default."""
    return math.ceil(value * parts - 1e-9) / parts
