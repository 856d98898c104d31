"""A run whose adapter is on this computer: opens it, and gathers what its report and card say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from commands.runs.config import LoadedConfig
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, pick_run, qft_home
from commands.runs.judge.result import FILE as JUDGED
from commands.runs.judge.result import current_result
from commands.runs.measured import read_measured
from commands.runs.parent_adapter import kept_parent
from commands.runs.receipt import make_receipt
from commands.runs.timeline import timeline_of
from commands.ui import nodes
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.offer import Offer
from infra.provider import StopReason
from infra.run.budget import bill
from infra.run.fold import apply, fold
from infra.run.journal import Event, Kind, read
from infra.run.nodes import events_of, node_count, node_of
from infra.run.state import RunState
from infra.timestamps import format_utc
from trainer import hub
from trainer.adapters.parent import adapter_sha256
from trainer.rundir.samples import SAMPLES

RESULTS = ("eval-before.json", "eval-after.json", "status.json", "merged-parity.json", SAMPLES)


def open_fetched(wanted: str) -> tuple[RunFolder, LoadedConfig]:
    """Open a run whose adapter was fetched. Raises UsageError with the way there."""
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    check_fetched(folder, loaded)
    return folder, loaded


def check_fetched(folder: RunFolder, loaded: LoadedConfig) -> None:
    """Raise UsageError, with the way there, unless the adapter of a run was fetched."""
    if (loaded.out / "adapter").is_dir():
        return
    if fold(read(folder.journal)).trained:
        hint = f"`qft fetch {folder.name}` brings it"
    else:
        hint = (
            f"it is not trained yet: `qft status {folder.name}` shows how far it is, "
            f"`qft run {folder.name}` goes on"
        )
    raise UsageError(f"the adapter of `{folder.name}` is not at home", hint=hint)


def adapter_of(loaded: LoadedConfig) -> Path:
    """Return the folder of the fetched adapter, as an absolute path."""
    return (loaded.out / "adapter").absolute()


def add_results(run_dir: Path, loaded: LoadedConfig) -> None:
    """Put what the run left at home into a scratch run directory."""
    for name in RESULTS:
        if (loaded.out / name).exists():
            shutil.copyfile(loaded.out / name, run_dir / name)
    if judged := current_result(loaded.out):
        write_json(run_dir / JUDGED, judged)
    (run_dir / "adapter").symlink_to(adapter_of(loaded))


def write_facts(run_dir: Path, folder: RunFolder, loaded: LoadedConfig) -> Path:
    """Write what only this computer knows of a run into a scratch run directory."""
    path = run_dir / "facts.json"
    write_json(path, gather_facts(folder, loaded))
    return path


def gather_facts(
    folder: RunFolder,
    loaded: LoadedConfig,
    *,
    results: Path | None = None,
    until_s: float | None = None,
) -> dict[str, object]:
    """Gather what only this computer knows: evictions, the timeline, dollars, hours.

    `results` is where the results lie that came home, by default the run's out folder. Dollars and
    hours are those until the last event of the journal, or until `until_s`.
    """
    simulated, results = loaded.simulated, results or loaded.out
    receipt = make_receipt(folder, results, simulated=simulated)
    events = read(folder.journal)
    measured = read_measured(results, redone_steps=receipt.redone_steps)
    spans = timeline_of(events, measured, until_s=until_s)
    last_s = events[-1].at_s if events else 0.0
    used = bill(fold(events), last_s if until_s is None else until_s)
    return {
        "evictions": _evictions(events),
        "timeline": {"spans": [span.to_json() for span in spans], "own": receipt.own},
        "usd": used.usd,
        "listed": simulated,
        "hours": used.compute_h,
        "redone_steps": receipt.redone_steps,
        **_machine(events),
        # On the machine they have other names.
        "data": loaded.config.data.model_dump(mode="json", include={"train", "eval"}),
        "base": Path(os.path.normpath(loaded.model_folder or loaded.config.model.id)).name,
        **_parent(folder, loaded),
        **({"plan": receipt.comparison.to_json()} if receipt.comparison else {}),
    }


def _machine(events: Sequence[Event]) -> dict[str, object]:
    """Name the machine that was rented last; of one of the user's own, no address is told.

    Of a run that moved between providers, the last machine of each in turn, with its provider.
    """
    offer = fold(events).offer
    if offer is None or offer.provider == "ssh":
        return {}
    stays = list(_stays(events_of(events, 0)))
    count = node_count(events)
    several = f"{count} × " if count > 1 else ""
    if len(stays) < 2:
        return {"machine": f"{several}{offer.size} in {offer.place}"}
    named = [f"{several}{one.size} in {one.place} ({one.provider})" for one in stays]
    return {"machine": ", then ".join(named)}


def _stays(events: Sequence[Event]) -> Iterator[Offer]:
    """Yield the last offer that was granted at each provider, before the run moved to another."""
    state = RunState()
    last: Offer | None = None
    for event in events:
        state = apply(state, event)
        if event.kind is not Kind.CREATE_ACCEPTED or state.offer is None:
            continue
        if last is not None and last.provider != state.offer.provider:
            yield last
        last = state.offer
    if last is not None:
        yield last


def _parent(folder: RunFolder, loaded: LoadedConfig) -> dict[str, object]:
    """Name the adapter that a run went on from, without a local path, and what it hashes to."""
    name, kept = loaded.config.method.parent, kept_parent(folder.payload)
    if name is None:
        return {}
    is_folder = (loaded.folder / Path(name).expanduser()).is_dir() or "/" not in name
    shown = Path(name).name if is_folder or not hub.is_hub_id(name.partition("@")[0]) else name
    return {"parent": {"name": shown, "sha256": adapter_sha256(kept) if kept else None}}


def _evictions(events: Sequence[Event]) -> list[dict[str, object]]:
    """List the evictions of a run, each with the reason that was found in the end."""
    stops: list[dict[str, object]] = []
    last: dict[int, dict[str, object]] = {}
    for event in events:
        node = node_of(event)
        if event.kind is Kind.STOP_SEEN and event.data.get("ran", True):
            step, reason = event.data.get("step"), event.data["reason"]
            at = format_utc(event.at_s)
            last[node] = {"at": at, "step": step, "reason": reason, **nodes.of_node(node)}
            stops.append(last[node])
        elif event.kind is Kind.STOP_EXPLAINED and node in last:
            last[node]["reason"] = event.data["reason"]
    return [one for one in stops if one["reason"] in {StopReason.EVICTED, StopReason.PRICE}]
