"""Every provider in which a machine of ours could be, with or without a record of it here."""

from __future__ import annotations

from pathlib import Path

from commands.runs import factory
from commands.runs.find_config import reopen
from commands.runs.home import all_runs, environment
from commands.ui.errors import UsageError
from infra.azure.context import subscriptions
from infra.config import AzureTable, LocalTable, VmTable
from infra.provider import Provider


def providers_to_ask(home: Path, name: str = "") -> list[Provider]:
    """Return the provider named; else local, those that runs used, and a set-up Azure.

    Works with every local file lost: what is in the cloud is found by its tags.
    """
    if name:
        return [factory.make_provider(_bare_table(name), home)]
    tables: dict[tuple[str, str], VmTable] = {("local", ""): VmTable()}
    for run in all_runs(home):
        try:
            vm = reopen(run).config.vm
        except UsageError:
            continue  # a damaged record must not hide the machines of others
        account = vm.azure.subscription.lower() if vm.provider == "azure" else ""
        tables.setdefault((vm.provider, account), vm)
    chosen = environment().get("AZURE_SUBSCRIPTION_ID", "")
    accounts = {chosen.lower(), *subscriptions(home / "azure")} - {""}
    tables |= {("azure", one): _bare_table("azure", one) for one in sorted(accounts)}
    if accounts:
        tables.pop(("azure", ""), None)
    return [factory.make_provider(vm, home) for vm in tables.values()]


def _bare_table(name: str, subscription: str = "") -> VmTable:
    """Build what it takes to list and remove machines of a provider, without any run's config."""
    if name not in {"local", "azure"}:
        raise UsageError(f"`--provider {name}` lists no machines", hint="it is `local` or `azure`")
    return VmTable.model_construct(
        provider=name,
        local=LocalTable(),
        azure=AzureTable(subscription=subscription),
        ssh=None,
        max_price=None,
    )
