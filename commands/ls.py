"""`qft ls`: the runs of this computer, and with `--all` every machine that carries our tag."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from commands.down import known_providers
from commands.errors import CloudTrouble
from commands.home import all_runs, environment, qft_home
from infra.cost import bill
from infra.journal import JournalDamaged, read
from infra.provider import ProviderError
from infra.state import fold


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


@dataclass(frozen=True, kw_only=True)
class MachineLine:
    """One machine in a cloud."""

    run_id: str
    provider: str
    id: str
    region: str
    size: str
    power: str
    bills_compute: bool
    created_at: str


def runs() -> list[RunLine]:
    """Every run with a record here."""
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
                state=_word(state.fetched, deleted=state.deleted, up=state.up),
                step=state.step,
                steps=state.steps,
                evictions=state.evictions,
                usd=round(used.usd, 6),
                usd_per_h_now=used.usd_per_h_now,
            )
        )
    return lines


def machines(provider_name: str = "") -> tuple[list[MachineLine], CloudTrouble | None]:
    """Every machine that the providers list as ours, and which of them could not be asked.

    One that does not answer hides no machine of the others.
    """
    lines: list[MachineLine] = []
    problems, hints = [], []
    for provider in known_providers(qft_home(environment()), provider_name):
        try:
            listed = provider.list_all()
        except ProviderError as error:
            problems.append(f"{provider.name}: {error}")
            hints.append(error.hint)
            continue
        lines += [
            MachineLine(
                run_id=vm.run_id,
                provider=vm.provider,
                id=vm.id,
                region=vm.region,
                size=vm.size,
                power=str(vm.power),
                bills_compute=vm.power.bills_compute and provider.traits.rents,
                created_at=vm.created_at,
            )
            for vm in listed
        ]
    if not problems:
        return lines, None
    told = "not every cloud could be asked: what bills there is not shown"
    return lines, CloudTrouble(told, problems=problems, hint=next(filter(None, hints), ""))


def to_json(lines: list[RunLine] | list[MachineLine]) -> list[dict[str, object]]:
    """Plain values."""
    return [asdict(line) for line in lines]


def _damaged(name: str, error: JournalDamaged) -> RunLine:
    said = f"record damaged: {error}"
    return RunLine(run=name, state=said, step=0, steps=0, evictions=0, usd=0.0, usd_per_h_now=0.0)


def _word(fetched: str, *, deleted: bool, up: bool) -> str:
    if fetched and deleted:
        return "done"
    if up:
        return "machine up"
    return "removed" if deleted else "machine down"
