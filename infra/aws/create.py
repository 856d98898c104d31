"""Creates one persistent spot machine under a hard cap, or nothing that bills."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.delete import Deleter
from infra.aws.observe import VmObserver
from infra.aws.safeguards import AwsSafeguards
from infra.provider import Vm, VmSpec
from infra.renting.refusal_cache import RefusalCache


@dataclass(frozen=True, kw_only=True)
class VmCreator:
    """Creates the machine of a spec, in an order in which nothing can be lost."""

    context: AwsContext
    observer: VmObserver
    deleter: Deleter
    safeguards: AwsSafeguards
    refusal_cache: RefusalCache

    def create(self, spec: VmSpec) -> Vm:
        """Create the machine of `spec`, or return the one that exists.

        On errors nothing that bills is left.
        """
        raise NotImplementedError
