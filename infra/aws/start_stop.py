"""Starts, stops and evicts machines, and admits the caller's address."""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.context import AwsContext
from infra.aws.observe import VmObserver
from infra.provider import Vm


@dataclass(frozen=True, kw_only=True)
class PowerControl:
    """Orders about a machine's power."""

    context: AwsContext
    observer: VmObserver

    def start(self, vm: Vm) -> None:
        """Start a stopped machine under its old cap; silent if it runs or is starting."""
        raise NotImplementedError

    def deallocate(self, vm: Vm) -> None:
        """Stop the machine and return when EC2 says that it is stopped."""
        raise NotImplementedError

    def evict(self, vm: Vm) -> None:
        """Rehearse an interruption by AWS Fault Injection Service."""
        raise NotImplementedError

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Admit the caller's address of now to SSH; whether the rule had to change."""
        raise NotImplementedError

    def cap_in_force(self, vm: Vm) -> float | None:
        """The price cap of the machine's spot request, USD per hour; None if it has none."""
        raise NotImplementedError

    def billed_until_s(self, vm: Vm) -> float | None:
        """When a machine that `deallocate` released ceased to bill compute, in s since 1970."""
        raise NotImplementedError
