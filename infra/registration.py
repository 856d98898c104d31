"""What can be asked of a provider by its name alone, before there is a machine or even a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from infra.config import VmTable
from infra.offer import Want
from infra.provider import Provider
from infra.renting.checks import Check


class Registration(ABC):
    """One provider as `registry.py` lists it. Methods with a body are optional."""

    name: str
    """The value of `vm.provider` that selects it."""
    lists_machines = True
    """Whether its machines can be listed without any run's config."""
    empty_is_account = False
    """Whether an empty account is one of its own; else it stands for one of `accounts`."""

    @abstractmethod
    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> Provider:
        """Make the provider for a table. Raises `ValueError` for settings that cannot be."""

    def account_of(self, vm: VmTable) -> str:
        """The account that a table names, comparable with `accounts`; empty if it names none."""
        del vm
        return ""

    def accounts(self, state_dir: Path, environment: Mapping[str, str]) -> set[str]:
        """The accounts in which machines may bill: the chosen one, and those used before."""
        del state_dir, environment
        return set()

    def bare_table(self, account: str = "") -> VmTable:
        """What it takes to list and remove machines of an account, without any run's config.

        Not validated: that would ask for a price cap, and nothing is rented.
        """
        del account
        return VmTable.model_construct(provider=self.name)

    def checks(
        self, vm: VmTable, want: Want, state_dir: Path, environment: Mapping[str, str]
    ) -> list[Check]:
        """What the account lacks, in the order of mending; changes nothing."""
        del vm, want, state_dir, environment
        return []
