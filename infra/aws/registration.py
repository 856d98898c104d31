"""AWS as the registry lists it: its settings, its accounts and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.aws.context import accounts
from infra.aws.provider import AwsProvider
from infra.aws.settings import AwsSettings
from infra.config import VmTable
from infra.provider import Want
from infra.registration import Registration
from infra.renting.checks import Check


class AwsRegistration(Registration):
    """An account is known by the profile that opens it; empty for the SDK's own choice."""

    name = "aws"

    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> AwsProvider:
        """Make the provider. Raises `ValueError` for an environment that cannot be."""
        return AwsProvider(settings_of(vm, environment), state_dir)

    def accounts(self, state_dir: Path, environment: Mapping[str, str]) -> set[str]:
        """The accounts in which this computer made something that it has not seen removed."""
        del environment
        return accounts(state_dir)

    def checks(
        self, vm: VmTable, want: Want, state_dir: Path, environment: Mapping[str, str]
    ) -> list[Check]:
        """What the account lacks, each with the command or link that mends it."""
        return self.make(vm, state_dir, environment).checks(want)


def settings_of(vm: VmTable, environment: Mapping[str, str]) -> AwsSettings:
    """The account, the image and the rest, from the environment and the table."""
    settings = AwsSettings.from_environment(environment)
    return replace(settings, profile=vm.aws.profile, subnet=vm.aws.subnet, image=vm.aws.image)
