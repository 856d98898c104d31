"""`qft evict`: asks the provider to evict the run's machine, to see the run survive it."""

from __future__ import annotations

from pathlib import Path

import typer

from commands.runs import factory
from commands.runs.find_config import reopen
from commands.runs.home import environment, pick_run, qft_home
from commands.runs.running_machine import other_nodes, recorded_machine
from commands.ui.errors import CloudError, UsageError
from commands.ui.options import Json, Node, Run, examples
from commands.ui.output import log, print_json
from infra.errors import ProviderError
from infra.provider import PowerState

UP = frozenset({PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING})

EXAMPLES = {
    "qft evict my-run": "see it survive; counts as one of `budget.evictions`",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(run: Run = "", *, node: Node = None, as_json: Json = False) -> None:
    """Ask the cloud to rehearse an eviction."""
    done = evict(run, node)
    if as_json:
        print_json({"asked": done})
    else:
        log(done)


def evict(wanted: str, node: int | None = None) -> str:
    """Ask the provider to evict a machine of the run; return what was asked.

    Raises:
        UsageError: there is no machine, or none that can be evicted.
        CloudError: the provider refused.
    """
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    vm = recorded_machine(folder, node)
    if vm is None:
        raise UsageError(
            f"`{folder.name}` has no machine to evict",
            hint=f"`qft status {folder.name}` tells where it is; evict it while it trains",
        )
    provider = factory.make_provider(loaded.config.vm, qft_home(environment()))
    if not provider.traits.evicts:
        raise UsageError(
            f"machines of `provider: {provider.name}` are never evicted",
            hint="`provider: local` rehearses an eviction on this computer",
        )
    try:
        power = provider.observe(vm).power
        if power not in UP:
            raise UsageError(
                f"the machine of `{folder.name}` is {power}: there is nothing to evict",
                hint=f"`qft train {folder.name}` goes on with the run; evict it while it trains",
            )
        provider.evict(vm)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    others = other_nodes(folder, node)
    return f"{vm.provider} was asked to evict {vm.id}" + (f" ({others})" if others else "")
