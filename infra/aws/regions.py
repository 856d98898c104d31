"""Finds the regions in which an account can have something of ours."""

from __future__ import annotations

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories
from infra.renting.run_record import RunRecord, records


def regions_to_ask(context: AwsContext) -> list[str]:
    """Every region that the account has enabled, and those in which this computer has a record."""
    enabled = Inventories(context=context).enabled_regions()
    return sorted({*enabled, *(one.ids["region"] for one in recorded_here(context))})


def recorded_here(context: AwsContext) -> list[RunRecord]:
    """The runs that this computer began in the account signed in, and has not seen removed."""
    account = context.account()
    return [
        one
        for one in records(context.state_dir)
        if one.ids.get("account") == account and one.ids.get("region")
    ]
