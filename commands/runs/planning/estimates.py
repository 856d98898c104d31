"""Will it fit, and how long will it take: asked before a machine is rented, or this one is busy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands.runs.base_description import base_folder, config_for_plan, described
from commands.runs.base_tokens import token_faults
from commands.runs.config import LoadedConfig
from commands.runs.home import environment
from commands.runs.hub_base import HubAnswer
from commands.runs.planning.counted_memory import with_count
from commands.runs.planning.job_estimate import JobEstimate
from commands.runs.planning.job_inputs import JobInputs, job_inputs, with_hub
from commands.runs.planning.job_parts import job_parts, machine_of, notes_on
from commands.runs.planning.row_lengths import RowLengths
from commands.ui.errors import UsageError
from infra.catalog.gpus import UnknownGpu
from infra.catalog.vendors import resolve_gpu_at
from infra.offer import Offer
from trainer.base_limits import places
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import Shape
from trainer.estimate.cards import idle_warning, rounds
from trainer.estimate.gpus import GPUS, TrainingGpu
from trainer.estimate.span import Span
from trainer.estimate.training import RowTokens, estimate_rows
from trainer.text import MINUTE_S, duration

CORE_FLOPS = 3e10
"""Per second and core, in float32: what SmolLM2-135M reaches on two shared cores
(docs/benchmarks.md); others differ by more than the factor that is told."""
CORE_FACTOR = 3.0
HERE = "this computer"
NO_ROWS = (
    "the hours are unknown until the rows are here: put the data files where run.yaml names them, "
    "or say `plan: {rows: ..., tokens: ...}` there"
)
DRIVER = Path("/proc/driver/nvidia/version")


def estimate_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Memory and time on the card that is named; None if it or the base is unknown.

    From the base's own description, the catalog and the first rows. The keys are those of
    `trainer.estimate.training.estimate_training`, and `usual_tokens`, of a row.
    """
    vm = loaded.config.vm
    card = GPUS.get(resolve_gpu_at(vm.providers[0], vm.card).gpu.name) if vm.card else None
    if card is None:
        return None
    return _estimate(loaded, _tables(loaded), card, cards=vm.gpus, machines=vm.nodes)


def estimate_local_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """The same on the processor of this computer; None if the base is unknown.

    `gpu_bytes` is the memory that is free now. All rows of a batch are done at once here.
    """
    processes = loaded.config.vm.gpus * loaded.config.vm.nodes
    tables = tables_here(_tables(loaded), processes)
    found = _estimate(loaded, tables, computer(loaded))
    return None if found is None else for_processes(found, processes)


def tables_here(tables: TrainerConfig, processes: int = 1) -> TrainerConfig:
    """Return the settings as a processor trains by them: whole batches at once.

    Processes that play several cards have their part of a batch each.
    """
    if tables.train.micro_batch != "auto":
        return tables
    size = rounds(tables.train.batch_size, processes)
    train = tables.train.model_copy(update={"micro_batch": size})
    return tables.model_copy(update={"train": train})


def for_processes(found: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the memory of so many processes that train on one processor; hours stay as they are.

    They have the same cores between them.
    """
    if count == 1:
        return found
    span = {name: count * value for name, value in found["memory_span"].items()}
    return {
        **found,
        "memory_bytes": {name: count * value for name, value in found["memory_bytes"].items()},
        "memory_span": span,
        "fits": span["high"] <= found["gpu_bytes"],
    }


def computer(loaded: LoadedConfig) -> TrainingGpu:
    """Return this computer as a training sees it, with the memory that is free now."""
    import psutil

    return TrainingGpu(
        name=HERE,
        memory_bytes=float(psutil.virtual_memory().available),
        precision=PrecisionChoice.FP32,
        flops=cores(loaded) * CORE_FLOPS,
        factor=CORE_FACTOR,
        source="our own: SmolLM2-135M on two shared cores (docs/benchmarks.md, 2026-11-22)",
    )


def warn_before_renting(loaded: LoadedConfig, on_message: Callable[[str], None]) -> None:
    """Tell what the user should know before anything is rented: which card, and will it fit."""
    vm = loaded.config.vm
    if vm.provider == "ssh":  # which card it has, set-up sees
        return
    for note in dict.fromkeys(vm.card_notes):
        on_message(f"note: {note}")
    warn_if_too_large(loaded, on_message)


def warn_if_too_large(loaded: LoadedConfig, on_message: Callable[[str], None]) -> None:
    """Tell that the training will not fit the card that is to be rented, if that is known."""
    if not loaded.config.vm.rents:
        return
    estimate = estimate_run(loaded)
    if estimate is not None and not estimate["fits"]:
        on_message(f"warning: {estimate_line(estimate)}")
    shared = None if estimate is None else estimate.get("sharing")
    if shared and (idle := idle_warning(shared, batch_size=loaded.config.train.batch_size)):
        on_message(f"warning: {idle}")


def has_card() -> bool:
    """Whether this computer has a card that a rehearsal would train on instead, as far as known."""
    return DRIVER.exists()


def cores(loaded: LoadedConfig) -> int:
    """How many threads a training here would compute with."""
    wanted = loaded.config.train.threads
    if wanted != "auto":
        return wanted
    threads = environment().get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) else os.cpu_count() or 1


def why_unknown(loaded: LoadedConfig) -> str:
    """Why a base has no forecast, and what to do; empty if the reason is another."""
    return job_inputs(loaded).problem


def require_embedded_tokens(loaded: LoadedConfig) -> None:
    """Raise UsageError if a base from a hub has tokens without an embedding.

    Those of a directory are told with its other faults.
    """
    folder, config = base_folder(loaded), described(loaded)
    if loaded.model_folder is not None or folder is None or config is None:
        return
    name = loaded.config.model.id
    if faults := token_faults(folder, config):
        problems = [f"model.id: `{name}`: {problem}" for problem in faults]
        raise UsageError("the model cannot be used; nothing was rented", problems=problems)


def length_warning(loaded: LoadedConfig) -> str:
    """What to warn of if rows may be longer than the texts that the base was made for."""
    limit, longest = places(config_for_plan(loaded) or {}), loaded.config.train.max_length
    if limit is None or longest <= limit.count:
        return ""
    able = "has places for" if limit.learnt else "was made for texts of up to"
    then = "a longer row is refused" if limit.learnt else "a longer row is foreign to it"
    return f"`train.max_length` is {longest}, and the base {able} {limit.count} tokens: {then}"


def estimate_line(estimate: dict[str, Any] | None, unknown: str = "") -> str:
    """The forecast in one line; `unknown` says why there is none."""
    if estimate is None:
        return f"memory and time: {unknown or 'not known for this card'}"
    memory = (
        f"{estimate['memory_bytes']['reserved'] / 1e9:.1f} of {estimate['gpu_bytes'] / 1e9:.1f} GB"
    )
    if not estimate["fits"]:
        remedy = "shorten rows or choose another"
        base = estimate["memory_bytes"]["base"]
        if base > estimate["gpu_bytes"]:
            remedy = (
                f"the base alone takes {base / 1e9:.1f} GB; choose a larger one, or another base"
            )
        return f"memory: does NOT fit a {estimate['gpu']}, {memory}; {remedy}"
    rows = f"{estimate['micro_batch']} rows at once"
    shared = estimate.get("sharing")
    several = f" (each of {shared['cards']})" if shared else ""
    return f"memory: {memory} of a {estimate['gpu']}{several}, {rows}{_time(estimate)}"


def local_estimate_line(estimate: dict[str, Any] | None, *, threads: int, card: bool) -> str:
    """What the rehearsal itself will need, in one line."""
    if card:
        return "here: this computer trains, on its own NVIDIA card if torch can use it"
    trains = f"here: this computer trains, on {threads} core{'s' * (threads > 1)}"
    if estimate is None:
        return f"{trains}, for as long as that takes"
    need, free = estimate["memory_bytes"]["reserved"] / 1e9, estimate["gpu_bytes"] / 1e9
    if not estimate["fits"]:
        short = f"{need:.1f} GB needed, {free:.1f} GB free"
        return f"{trains}: does NOT fit, {short}; rehearse with a smaller model or shorter rows"
    return f"{trains}: {need:.1f} of {free:.1f} GB that are free{_time(estimate)}"


def _time(estimate: dict[str, Any]) -> str:
    if estimate["hours"] is None:
        return ""
    seconds = estimate["hours"] * 3600
    how_long = "less than a minute" if seconds < MINUTE_S else duration(seconds)
    return f"; {how_long}, within a factor of {estimate['hours_factor']:g}"


def _tables(loaded: LoadedConfig) -> TrainerConfig:
    return TrainerConfig.model_validate(loaded.config.trainer_tables)


def _estimate(
    loaded: LoadedConfig,
    tables: TrainerConfig,
    gpu: TrainingGpu,
    *,
    cards: int = 1,
    machines: int = 1,
) -> dict[str, Any] | None:
    inputs = job_inputs(loaded)
    if inputs.shape is None:
        return None
    rows = rows_of(tables, inputs.lengths)
    found = rows_estimate(loaded, tables, inputs.shape, rows, gpu, cards=cards, machines=machines)
    return {**found, "usual_tokens": round(rows.usual)}


def rows_estimate(  # noqa: PLR0913 - what is trained, and on what
    loaded: LoadedConfig,
    tables: TrainerConfig,
    shape: Shape,
    rows: RowTokens,
    gpu: TrainingGpu,
    *,
    cards: int = 1,
    machines: int = 1,
) -> dict[str, Any]:
    """Return memory and time of the rows; memory is counted for the card that the config names.

    To count takes seconds, too many for every card of a catalog. Of several cards the formula
    stands: a count knows of one.
    """
    found = estimate_rows(tables, shape, rows, gpu=gpu, cards=cards, machines=machines)
    vm = loaded.config.vm
    if cards * machines > 1:
        return found
    try:
        card = resolve_gpu_at(vm.providers[0], vm.card).gpu if vm.card else None
    except UnknownGpu:
        card = None
    if card is None or card.name != gpu.name:
        return found
    return with_count(
        found, config=config_for_plan(loaded), tables=tables, rows=rows,
        capability=card.compute_capability,
    )  # fmt: skip


def _counted_note(found: dict[str, Any]) -> tuple[str, ...]:
    """Return what the user should know if count and formula differ."""
    message = found.get("memory_disagreement")
    return (message,) if message else ()


def rows_of(tables: TrainerConfig, lengths: RowLengths | None) -> RowTokens:
    """Return the rows as a training is estimated with them; memory is that of the longest allowed.

    Without lengths every row is taken to be as long as is allowed, and to be learnt whole.
    """
    longest = tables.train.max_length
    if lengths is None:
        return RowTokens(longest=longest, usual=longest)
    return RowTokens(
        longest=longest,
        usual=lengths.mean_tokens,
        usual_target=lengths.target_tokens,
        sample=lengths.tokens,
        shares=lengths.shares,
    )


def estimate_job(  # noqa: PLR0913 - a job, where it is done, and what is known already
    loaded: LoadedConfig,
    card: str,
    *,
    offer: Offer | None = None,
    hub: HubAnswer | None = None,
    inputs: JobInputs | None = None,
    cards: int | None = None,
) -> JobEstimate:
    """Return what the whole job needs on its cards: memory of each, and the hours of each part.

    `card` is a name of the catalog, or `HERE` for this computer; `offer` says how often machines
    there are evicted, `hub` how large the base is and who fetches it. What is not known is None,
    and `problem` says what to do. Cheap when asked again for another offer; `inputs` are given
    where they are known, as for a config that differs in little. `cards` are those of one machine;
    without, `vm.gpus` of each of `vm.nodes` machines do it.
    """
    vm = loaded.config.vm
    count, nodes = (vm.gpus, vm.nodes) if cards is None else (cards, 1)
    gpu = find_gpu(loaded, card)
    if gpu is None:
        problem = f"no figures are known for the card `{card}`; name one of {', '.join(GPUS)}"
        return JobEstimate(card=card, card_bytes=0.0, problem=problem)
    inputs = inputs or job_inputs(loaded)
    if inputs.shape is None:
        return JobEstimate(card=gpu.name, card_bytes=gpu.memory_bytes, problem=inputs.problem)
    here = card == HERE
    tables = tables_here(inputs.tables, count * nodes) if here else inputs.tables
    rows = rows_of(tables, inputs.lengths)
    on_card, machines = (1, 1) if here else (count, nodes)
    if inputs.may_count:
        found = rows_estimate(
            loaded, tables, inputs.shape, rows, gpu, cards=on_card, machines=machines
        )
    else:
        found = estimate_rows(tables, inputs.shape, rows, gpu=gpu, cards=on_card, machines=machines)
    if here:
        found = for_processes(found, count * nodes)
    if hub is not None:
        inputs = with_hub(inputs, hub)
    machine = machine_of(loaded, offer, here=here)
    shared = found.get("sharing")
    if shared:
        gpu = replace(gpu, gather_s=shared["pass_s"])
    parts = job_parts(replace(inputs, tables=tables), found, gpu, machine)
    steps = found["steps"]
    tokens = None
    if steps is not None:
        tokens = steps * tables.train.batch_size * rows.usual
    return JobEstimate(
        card=gpu.name,
        card_bytes=gpu.memory_bytes,
        memory_bytes=Span(**found["memory_span"]),
        fits=found["fits"],
        micro_batch=found["micro_batch"],
        trained_tokens=tokens,
        parts=parts,
        problem="" if parts else NO_ROWS,
        sharing=shared,
        nodes=nodes,
        step_s=found["step_seconds"] if shared else None,
        idle_cards=idle_warning(shared, batch_size=tables.train.batch_size) if shared else "",
        notes=(*notes_on(inputs, gpu), *_counted_note(found)),
    )


def find_gpu(loaded: LoadedConfig, card: str) -> TrainingGpu | None:
    """Return a card by any spelling of its name, or this computer; None if there are no figures."""
    if card == HERE:
        return computer(loaded)
    if card in GPUS:
        return GPUS[card]
    try:
        return GPUS.get(resolve_gpu_at(loaded.config.vm.providers[0], card).gpu.name)
    except UnknownGpu:
        return None
