"""The machine of a run as it is now, and how to connect to it, for commands that drive nothing."""

from __future__ import annotations

from dataclasses import replace

from commands.runs import factory
from commands.runs.config import LoadedConfig
from commands.runs.home import RunFolder, environment, qft_home
from commands.ui.errors import CloudError
from commands.ui.nodes import chosen_node, each_node, others_text
from infra.errors import ProviderError
from infra.provider import PowerState, Vm
from infra.run.fold import fold
from infra.run.journal import read
from remote.ssh import Host


def recorded_machine(folder: RunFolder, node: int | None = None) -> Vm | None:
    """Return the machine that the journal of a run names; of several the one that leads.

    `node` names another. Raises UsageError if the run has no such machine.
    """
    state = fold(read(folder.journal))
    return each_node(state)[chosen_node(state, node, name=folder.name)].vm


def other_nodes(folder: RunFolder, node: int | None) -> str:
    """Say which machine is taken where none was named, and which others there are."""
    state = fold(read(folder.journal))
    return others_text(state, chosen_node(state, None, name=folder.name)) if node is None else ""


def running_machine(loaded: LoadedConfig, vm: Vm | None) -> Vm | None:
    """Return the machine with its present address; None if its provider says it does not run.

    Raises:
        CloudError: the provider does not answer.
    """
    if vm is None:
        return None
    provider = factory.make_provider(loaded.config.vm, qft_home(environment()))
    try:
        seen = provider.observe(vm)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    if seen.power is not PowerState.RUNNING or not seen.host:
        return None
    return replace(vm, host=seen.host, port=seen.port)


def ssh_host(folder: RunFolder, loaded: LoadedConfig, vm: Vm) -> Host:
    """Describe how to connect to the machine of a run."""
    return Host(
        address=vm.host,
        port=vm.port,
        user=vm.user,
        key_path=factory.user_key(loaded.config.vm, folder),
        host_key=vm.host_public_key,
        next_host_key=vm.next_host_public_key,
    )
