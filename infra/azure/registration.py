"""Azure as the registry lists it: its settings, its accounts and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.azure.context import subscriptions
from infra.azure.provider import AzureProvider
from infra.azure.settings import AzureSettings
from infra.config import AzureTable, VmTable
from infra.offer import Want
from infra.registration import Registration
from infra.renting.checks import Check


class AzureRegistration(Registration):
    """An account is a subscription, in lower case."""

    name = "azure"

    def make(self, vm: VmTable, state_dir: Path, environment: Mapping[str, str]) -> AzureProvider:
        """Make the provider. Raises `ValueError` for an environment that cannot be."""
        return AzureProvider(settings_of(vm, environment), state_dir)

    def account_of(self, vm: VmTable) -> str:
        """The subscription that a table names."""
        return vm.azure.subscription.lower()

    def accounts(self, state_dir: Path, environment: Mapping[str, str]) -> set[str]:
        """The subscription of the environment, and those in which this computer made something."""
        chosen = environment.get("AZURE_SUBSCRIPTION_ID", "").lower()
        return {chosen, *subscriptions(state_dir)} - {""}

    def bare_table(self, account: str = "") -> VmTable:
        """What it takes to list and remove machines of a subscription."""
        return VmTable.model_construct(provider=self.name, azure=AzureTable(subscription=account))

    def checks(
        self, vm: VmTable, want: Want, state_dir: Path, environment: Mapping[str, str]
    ) -> list[Check]:
        """What the account lacks, each with the command or link that mends it."""
        return self.make(vm, state_dir, environment).checks(want)


def settings_of(vm: VmTable, environment: Mapping[str, str]) -> AzureSettings:
    """The account, the image and the rest, from the environment and the table."""
    settings = AzureSettings.from_environment(environment)
    if vm.azure.subscription:
        settings = replace(settings, subscription_id=vm.azure.subscription)
    if vm.image is not None:
        settings = replace(settings, image=vm.image.urn)
    return settings
