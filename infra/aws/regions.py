"""Finds the regions in which an account can have something of ours."""

from __future__ import annotations

from infra.aws.context import AwsContext, recorded_regions
from infra.aws.inventory import Inventories


def regions_to_ask(context: AwsContext) -> list[str]:
    """Every region that the account has enabled, and those in which this computer has a record."""
    enabled = Inventories(context=context).enabled_regions()
    return sorted({*enabled, *recorded_regions(context.state_dir)})
