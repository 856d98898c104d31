"""Lists every machine with our tag, over all regions of the account."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.observe import VmObserver
from infra.provider import Vm


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The machines of an account, and remnants of them."""

    context: AwsContext
    observer: VmObserver

    def list_all(self) -> list[Vm]:
        """List every machine with our tag, newest first."""
        raise NotImplementedError
