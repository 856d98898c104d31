"""AWS as the registry lists it: its settings, its accounts and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.aws.context import profiles
from infra.aws.provider import AwsProvider
from infra.aws.settings import AwsSettings
from infra.config import AwsTable, VmTable
from infra.offer import Want
from infra.registration import Registration
from infra.renting.checks import Check

CHOSEN = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID")
"""What says that the environment itself chooses an account."""


class AwsRegistration(Registration):
    """An account is known by the profile that opens it; empty for the SDK's own choice.

    Its number is in the id of every machine.
    """

    name = "aws"
    empty_is_account = True

    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> AwsProvider:
        """Make the provider. Raises `ValueError` for an environment that cannot be."""
        return AwsProvider(settings_of(vm, environment), state_dir)

    def account_of(self, vm: VmTable) -> str:
        """The profile that a table names."""
        return vm.aws.profile

    def accounts(self, state_dir: Path, environment: Mapping[str, str]) -> set[str]:
        """The profile of the environment, and those with which this computer made something."""
        chosen = {""} if any(environment.get(name) for name in CHOSEN) else set()
        return {*chosen, *profiles(state_dir)}

    def bare_table(self, account: str = "") -> VmTable:
        """What it takes to list and remove the machines of a profile."""
        return VmTable.model_construct(provider=self.name, aws=AwsTable(profile=account))

    def checks(
        self, vm: VmTable, want: Want, state_dir: Path, environment: Mapping[str, str]
    ) -> list[Check]:
        """What the account lacks, each with the command or link that mends it."""
        return self.make(vm, state_dir, environment).checks(want)


def settings_of(vm: VmTable, environment: Mapping[str, str]) -> AwsSettings:
    """The account, the image and the rest, from the environment and the table."""
    settings = AwsSettings.from_environment(environment)
    return replace(settings, profile=vm.aws.profile, subnet=vm.aws.subnet, image=vm.aws.image)
