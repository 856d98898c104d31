"""Checks of an AWS account for `qft doctor`; creates nothing."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.provider import Want
from infra.renting.checks import Check


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Looks at what the account lacks."""

    context: AwsContext

    def checks(self, want: Want) -> list[Check]:
        """What the account lacks, in the order of mending."""
        raise NotImplementedError
