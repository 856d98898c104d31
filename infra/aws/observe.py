"""Looks at machines once: power, reason of a stop, address, price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.provider import Observation, Vm


@dataclass(frozen=True, kw_only=True)
class VmObserver:
    """Reads what EC2 says of a machine and of its spot request."""

    context: AwsContext
    price_now: Callable[[str, str, str], float | None]
    """Size, region and zone in, the spot price now out; None if nobody knows."""

    def observe(self, vm: Vm) -> Observation:
        """Look at the machine once. A machine that is gone is an observation, not an error."""
        raise NotImplementedError
