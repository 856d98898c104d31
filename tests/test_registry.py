"""Providers are found by name alone, each with the accounts in which its machines may bill."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from commands import doctor
from commands.ui.options import ProviderName
from infra.azure import AzureProvider
from infra.config import VmTable
from infra.provider import Provider
from infra.registry import NAMES, registration, registrations
from infra.vm_choices import CLOUDS
from infra.vm_choices import ProviderName as ProviderNameInConfig

SUBSCRIPTION = "00000000-1111-2222-3333-444444444444"
SSH = {"host": "h", "user": "u", "key": "k", "host_key": "ssh-ed25519 AAAA"}
TABLES = {
    "local": {"provider": "local"},
    "azure": {"provider": "azure", "max_price": 0.25, "azure": {"subscription": SUBSCRIPTION}},
    "aws": {"provider": "aws", "max_price": 0.25},
    "ssh": {"provider": "ssh", "ssh": SSH},
}


def test_registry_and_config_name_the_same_providers() -> None:
    """What run.yaml may name has a row, and every row can be named."""
    named = typing.get_args(ProviderNameInConfig)

    assert set(named) == set(NAMES) == set(TABLES)
    assert set(CLOUDS) <= set(NAMES)
    assert [one.name for one in registrations()] == list(NAMES)


def test_help_names_the_providers_of_the_registry() -> None:
    """What `--provider` offers, without importing the registry, is what the registry has."""
    parameter = inspect.signature(doctor.command).parameters["provider"]
    hints = typing.get_type_hints(doctor.command, include_extras=True)
    listing = [one.name for one in registrations() if one.lists_machines]

    assert parameter.default == ""
    assert typing.get_args(hints["provider"])[1].metavar == "|".join(NAMES)
    assert typing.get_args(ProviderName)[1].metavar == "|".join(listing)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_makes_its_provider_from_the_table(name: str, tmp_path: Path) -> None:
    """The provider made for a table carries the name by which it was found."""
    table = VmTable.model_validate(TABLES[name])

    made = registration(name).make(table, tmp_path, {})

    assert isinstance(made, Provider)
    assert made.name == name


@pytest.mark.parametrize("name", [one.name for one in registrations() if one.lists_machines])
def test_a_bare_table_is_enough_to_list_machines(name: str, tmp_path: Path) -> None:
    """No run's config is needed to ask a provider what there is; the account is the one named."""
    entry = registration(name)

    table = entry.bare_table("some-account")

    assert entry.make(table, tmp_path, {}).name == name
    assert entry.account_of(table) in {"", "some-account"}


def test_subscriptions_used_before_are_accounts(tmp_path: Path) -> None:
    """The environment's subscription and those of this computer's records are all asked."""
    group = "/subscriptions/AAAA-1/resourceGroups/qft-run"
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, "ids": {"group": group}}))
    azure = registration("azure")

    found = azure.accounts(tmp_path, {"AZURE_SUBSCRIPTION_ID": "BBBB-2"})

    assert found == {"aaaa-1", "bbbb-2"}
    assert azure.account_of(azure.bare_table("CCCC")) == "cccc"
    assert registration("local").accounts(tmp_path, {}) == set()


def test_settings_that_cannot_be_are_refused_when_the_provider_is_made(tmp_path: Path) -> None:
    """A malformed environment, or a machine without a host key, is a `ValueError`."""
    azure = VmTable.model_validate(TABLES["azure"])
    keyless = VmTable.model_validate({"provider": "ssh", "ssh": SSH | {"host_key": ""}})

    with pytest.raises(ValueError, match="QFT_AZURE_POLLING_S"):
        registration("azure").make(azure, tmp_path, {"QFT_AZURE_POLLING_S": "soon"})
    with pytest.raises(ValueError, match="host key"):
        registration("ssh").make(keyless, tmp_path, {})
    assert isinstance(registration("azure").make(azure, tmp_path, {}), AzureProvider)


def test_the_registry_imports_no_provider_before_it_is_used() -> None:
    """Whoever only reads a config pays for no cloud."""
    ask = "import sys, infra.registry\nprint(*[m for m in sys.modules if m.startswith('infra.')])"

    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = done.stdout.split()
    assert "infra.registry" in loaded
    assert [one for one in loaded if one.startswith(("infra.azure", "infra.local"))] == []
