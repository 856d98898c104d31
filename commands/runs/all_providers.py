"""Every provider in which a machine of ours could be, with or without a record of it here."""

from __future__ import annotations

from pathlib import Path

from commands.runs import factory
from commands.runs.home import all_runs, environment
from commands.runs.saved_run import read_saved_run
from commands.ui.errors import UsageError
from infra.config import VmTable
from infra.provider import Provider
from infra.registry import registration, registrations


def providers_to_ask(home: Path, name: str = "") -> list[Provider]:
    """Return the provider named; else local, those that runs used, and clouds in use.

    Works with every local file lost: what is in the cloud is found by its tags.
    """
    if name:
        return [factory.make_provider(_bare_table(name), home)]
    tables: dict[tuple[str, str], VmTable] = {("local", ""): VmTable()}
    for run in all_runs(home):
        try:
            vm = read_saved_run(run).vm
        except UsageError:
            continue  # a damaged record must not hide the machines of others
        for one in vm.providers:
            tables.setdefault((one, registration(one).account_of(vm)), vm.at(one))
    for entry in registrations():
        accounts = sorted(entry.accounts(home / entry.name, environment()))
        tables |= {(entry.name, one): entry.bare_table(one) for one in accounts}
        if accounts and not entry.empty_is_account:
            tables.pop((entry.name, ""), None)
    return [factory.make_provider(vm, home) for vm in tables.values()]


def _bare_table(name: str) -> VmTable:
    """Build what it takes to list and remove machines of a provider, without any run's config."""
    listing = [one for one in registrations() if one.lists_machines]
    for entry in listing:
        if entry.name == name:
            return entry.bare_table()
    hint = f"it is {' or '.join(f'`{one.name}`' for one in listing)}"
    raise UsageError(f"`--provider {name}` lists no machines", hint=hint)
