"""`qft ls`: lists the runs of this computer; with `--all`, every machine with our tag."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.runs.all_providers import providers_to_ask
from commands.runs.home import all_runs, environment, qft_home
from commands.ui.errors import CloudError
from commands.ui.nodes import each_node
from commands.ui.options import Json, ProviderName, check_all, examples, fail_after_output
from commands.ui.output import log, print_data, print_json, table
from infra.card_count import cards_text
from infra.errors import NotAllowed, ProviderError
from infra.provider import PowerState, Provider, Vm
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import JournalDamaged, read
from infra.run.state import RunState

EXAMPLES = {
    "qft ls": "the runs of this computer",
    "qft ls --all": "every machine of ours in every cloud set up here",
    "qft ls --all --provider azure": "also when all local files are lost",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Machines in the cloud.")] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """List runs; with --all, every machine with our tag."""
    check_all("", everything=everything, provider=provider)
    lines, error = machines(provider) if everything else (runs(), None)
    rows = to_json(lines)
    if error and not rows:
        raise error  # an empty list would say that nothing bills
    if as_json:
        print_json(rows)
    elif rows:
        print_data(table(_with_node_rows(rows)))
    else:
        log("no machine of ours anywhere" if everything else "no run yet: try `qft run run.yaml`")
    if error:
        fail_after_output(error, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run of this computer."""

    run: str
    state: str
    step: int
    steps: int
    evictions: int
    usd: float
    usd_per_h_now: float
    nodes: tuple[NodeLine, ...] = ()
    """Its machines, where it has several."""


@dataclass(frozen=True, kw_only=True)
class NodeLine:
    """One of several machines of a run; the figures of the run are the sums of these."""

    node: int
    state: str
    step: int
    evictions: int
    usd: float
    usd_per_h_now: float


@dataclass(frozen=True, kw_only=True)
class MachineLine:
    """One machine in a cloud."""

    run_id: str
    node: int | None = None
    """Which of several machines of its run it is; None where its run has one."""
    provider: str
    id: str
    region: str
    size: str
    cards: str
    """Where a machine has several."""
    power: str
    bills_compute: bool
    created_at: str


def runs() -> list[RunLine]:
    """List every run with a record here."""
    lines = []
    now_s = time.time()
    for folder in all_runs(qft_home(environment())):
        try:
            state = fold(read(folder.journal))
        except JournalDamaged as error:
            lines.append(_damaged(folder.name, error))
            continue
        used = bill(state, now_s)
        lines.append(
            RunLine(
                run=folder.name,
                state=_state_word(state),
                step=state.step,
                steps=state.steps,
                evictions=state.evictions,
                usd=round(used.usd, 6),
                usd_per_h_now=used.usd_per_h_now,
                nodes=_node_lines(state, now_s),
            )
        )
    return lines


def _node_lines(state: RunState, now_s: float) -> tuple[NodeLine, ...]:
    """List the machines of a run that has several."""
    bills = [bill(one, now_s) for one in state.nodes]
    return tuple(
        NodeLine(
            node=node,
            state=_state_word(one),
            step=one.step,
            evictions=one.evictions,
            usd=round(used.usd, 6),
            usd_per_h_now=used.usd_per_h_now,
        )
        for node, (one, used) in enumerate(zip(state.nodes, bills, strict=True))
    )


def machines(provider_name: str = "") -> tuple[list[MachineLine], CloudError | None]:
    """List every machine of ours in the clouds, with an error for those that do not answer.

    One that does not answer hides no machine of the others.
    """
    lines: list[MachineLine] = []
    shown: set[tuple[str, str]] = set()
    problems, hints = [], []
    starting = _starting(qft_home(environment()))
    for provider in providers_to_ask(qft_home(environment()), provider_name):
        try:
            listed = provider.list_all()
            listed += _unlisted(provider, {(vm.run_id, vm.node) for vm in listed})
        except ProviderError as error:
            problems.append(f"{provider.name}: {error}")
            hints.append(error.hint)
            continue
        # Two profiles may open the same account.
        listed = [vm for vm in listed if (vm.provider, vm.id) not in shown]
        shown |= {(vm.provider, vm.id) for vm in listed}
        several = {vm.run_id for vm in listed if vm.node}
        lines += [
            MachineLine(
                run_id=vm.run_id,
                node=vm.node if vm.run_id in several else None,
                provider=vm.provider,
                id=vm.id,
                region=vm.region,
                size=vm.size,
                cards=cards_text(vm),
                power=_power(vm, starting),
                bills_compute=vm.power.bills_compute and provider.traits.rents,
                created_at=vm.created_at,
            )
            for vm in listed
        ]
    if not problems:
        return lines, None
    message = "not every cloud could be asked: what bills there is not shown"
    return lines, CloudError(message, problems=problems, hint=next(filter(None, hints), ""))


def _unlisted(provider: Provider, listed: set[tuple[str, int]]) -> list[Vm]:
    """Return machines in the records of this computer that the provider does not list.

    Such as one whose resource group lost its tags: it is asked for by its id, for it may bill.
    """
    found = []
    for run in all_runs(qft_home(environment())):
        try:
            state = fold(read(run.journal))
        except JournalDamaged:
            continue  # told elsewhere, and no reason to hide the machines of others
        for one in each_node(state):
            vm = one.vm
            if vm is None or vm.provider != provider.name or (vm.run_id, vm.node) in listed:
                continue
            try:
                seen = provider.observe(vm)
            except NotAllowed:
                continue  # it is in another account, whose own provider is asked for it
            if seen.power is not PowerState.GONE:
                found.append(replace(vm, power=seen.power))
    return found


def to_json(lines: list[RunLine] | list[MachineLine]) -> list[dict[str, Any]]:
    """Return plain values; how many cards or machines there are only where there are several."""
    rows = [asdict(line) for line in lines]
    for row in rows:
        if row.get("nodes") == ():
            del row["nodes"]
    for key, empty in (("cards", ""), ("node", None)):
        if all(row.get(key, empty) == empty for row in rows):
            for row in rows:
                row.pop(key, None)
    return rows


def _with_node_rows(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Return the rows of the table: below a run with several machines, a row for each of them."""
    shown: list[dict[str, object]] = []
    for row in rows:
        run = {key: value for key, value in row.items() if key != "nodes"}
        if "node" in run and run["node"] is None:
            run["node"] = ""
        shown.append(run)
        for one in row.get("nodes", ()):
            shown.append({**run, **one, "run": f"  node {one['node']}"})
            del shown[-1]["node"]
    return shown


def _damaged(name: str, error: JournalDamaged) -> RunLine:
    damage = f"record damaged: {error}"
    return RunLine(run=name, state=damage, step=0, steps=0, evictions=0, usd=0.0, usd_per_h_now=0.0)


def _state_word(state: RunState) -> str:
    """Name the state of a run, as far as its record shows it."""
    if state.fetched and state.deleted:
        return "done"
    if state.up:  # it bills from the moment it was asked for, and works once it is set up
        return "machine up" if state.prepared else "machine starting"
    if not state.starts:
        return "not started"
    return "removed" if state.deleted else "machine down"


def _power(vm: Vm, starting: Mapping[tuple[str, int], int]) -> str:
    """Return the power of a machine; `starting` until a run here has set it up."""
    begun = vm.power is PowerState.RUNNING and starting.get((vm.run_id, vm.node)) == vm.generation
    return str(PowerState.STARTING if begun else vm.power)


def _starting(home: Path) -> dict[tuple[str, int], int]:
    """Map machines of runs here that were started and not set up to their generation."""
    found = {}
    for folder in all_runs(home):
        try:
            state = fold(read(folder.journal))
        except JournalDamaged:
            continue  # told by `qft ls`; its machine is listed as its cloud has it
        for one in each_node(state):
            if one.up and not one.prepared and one.vm is not None:
                found[one.run_id, one.vm.node] = one.vm.generation
    return found
