"""Will it fit, and how long will it take: asked before a machine is rented, or this one is busy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands.runs.base_description import base_folder, config_for_plan, described, did_you_mean
from commands.runs.base_shape import base_shape
from commands.runs.base_tokens import token_faults
from commands.runs.config import LoadedConfig
from commands.runs.home import environment
from commands.runs.planning.job_estimate import JobEstimate, JobPart
from commands.runs.planning.job_parts import (
    DOWNLOAD_BYTES_PER_S,
    DOWNLOAD_SOURCE,
    FETCH_H,
    READ_BYTES_PER_S,
    Machine,
    at_rate,
    evictions_part,
    rent_part,
    set_up_part,
)
from commands.runs.planning.row_lengths import usual_tokens
from commands.ui.errors import UsageError
from infra.catalog.gpus import resolve_gpu
from infra.provider import Offer
from trainer.base_limits import places
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import UnknownShapeError
from trainer.estimate.gpus import GPUS, TrainingGpu
from trainer.estimate.span import Span
from trainer.estimate.training import estimate_training
from trainer.text import MINUTE_S, duration

CORE_FLOPS = 3e10
"""Per second and core, in float32: what SmolLM2-135M reaches on two shared cores
(docs/benchmarks.md); others differ by more than the factor that is told."""
DRIVER = Path("/proc/driver/nvidia/version")


def estimate_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """Memory and time on the card that is named; None if it or the base is unknown.

    From the base's own description, the catalog and the first rows. The keys are those of
    `trainer.estimate.training.estimate_training`, and `usual_tokens`, of a row.
    """
    gpu = loaded.config.vm.gpu
    card = GPUS.get(resolve_gpu(gpu).gpu.name) if gpu else None
    return None if card is None else _estimate(loaded, _tables(loaded), card)


def estimate_local_run(loaded: LoadedConfig) -> dict[str, Any] | None:
    """The same on the processor of this computer; None if the base is unknown.

    `gpu_bytes` is the memory that is free now. All rows of a batch are done at once here.
    """
    import psutil

    tables = _tables(loaded)
    if tables.train.micro_batch == "auto":
        train = tables.train.model_copy(update={"micro_batch": tables.train.batch_size})
        tables = tables.model_copy(update={"train": train})
    here = TrainingGpu(
        name="this computer",
        memory_bytes=float(psutil.virtual_memory().available),
        precision=PrecisionChoice.FP32,
        flops=cores(loaded) * CORE_FLOPS,
    )
    return _estimate(loaded, tables, here)


def warn_before_renting(loaded: LoadedConfig, on_message: Callable[[str], None]) -> None:
    """Tell what the user should know before anything is rented: which card, and will it fit."""
    vm = loaded.config.vm
    if vm.provider == "ssh":  # which card it has, set-up sees
        return
    if note := resolve_gpu(vm.gpu).note if vm.gpu else "":
        on_message(f"note: {note}")
    warn_if_too_large(loaded, on_message)


def warn_if_too_large(loaded: LoadedConfig, on_message: Callable[[str], None]) -> None:
    """Tell that the training will not fit the card that is to be rented, if that is known."""
    if loaded.config.vm.provider in {"ssh", "local"}:
        return
    estimate = estimate_run(loaded)
    if estimate is not None and not estimate["fits"]:
        on_message(f"warning: {estimate_line(estimate)}")


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
    model = config_for_plan(loaded)
    if model is None:
        meant = did_you_mean(loaded.config.model.id, after="; ")
        return f"unknown until the base's config.json lies here (`hf download` brings it){meant}"
    try:
        base_shape(model)
    except UnknownShapeError as error:
        return f"not known: {error}"
    return ""


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
    return f"memory: {memory} of a {estimate['gpu']}, {rows}{_time(estimate)}"


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
    return f"; {how_long}, within a factor of three"


def _tables(loaded: LoadedConfig) -> TrainerConfig:
    return TrainerConfig.model_validate(loaded.config.trainer_tables)


def _estimate(
    loaded: LoadedConfig, tables: TrainerConfig, gpu: TrainingGpu
) -> dict[str, Any] | None:
    model = config_for_plan(loaded)
    if model is None:
        return None
    try:
        shape = base_shape(model)
    except UnknownShapeError:
        return None
    estimate = estimate_training(tables, shape, gpu=gpu)
    usual = usual_tokens(loaded) or tables.train.max_length
    step_s = estimate_training(tables, shape, gpu=gpu, lengths=[usual])["step_seconds"]
    hours = None if estimate["steps"] is None else estimate["steps"] * step_s / 3600
    return {**estimate, "usual_tokens": usual, "step_seconds": step_s, "hours": hours}


def estimate_job(loaded: LoadedConfig, card: str, *, offer: Offer | None = None) -> JobEstimate:
    """Return what the whole job needs on one card: memory, and the hours of each part.

    `card` is a name of the catalog; `offer` says how often machines there are evicted. What is not
    gpu is None, and `problem` says what to do. Cheap when asked again for another offer.
    """
    gpu = GPUS.get(resolve_gpu(card).gpu.name) if card else None
    if gpu is None:
        return JobEstimate(
            card=card, card_bytes=0.0, problem=f"no figures are known for a card `{card}`"
        )
    tables = _tables(loaded)
    found = _estimate(loaded, tables, gpu)
    if found is None:
        return JobEstimate(card=card, card_bytes=gpu.memory_bytes, problem=why_unknown(loaded))
    machine = Machine(rented=loaded.config.vm.provider != "ssh", evicted_per_h=evicted_per_h(offer))
    parts = [rent_part(machine), set_up_part(machine)] if machine.rented else []
    base = found["parameters"] * 2.0
    load = at_rate(base, DOWNLOAD_BYTES_PER_S) + at_rate(base, READ_BYTES_PER_S)
    parts.append(JobPart(name="load", hours=load, source=DOWNLOAD_SOURCE, billed=machine.rented))
    problem = ""
    if found["hours"] is None:
        problem = "the number of steps is not known until the rows are counted"
    else:
        train = Span.within_factor(found["hours"], found["hours_factor"])
        parts.append(JobPart(name="train", hours=train, billed=machine.rented))
    parts.append(evictions_part(parts, machine, redone=Span(low=0.04, likely=0.06, high=0.17)))
    parts.append(JobPart(name="fetch", hours=FETCH_H, billed=machine.rented))
    steps = found["steps"] or 0
    return JobEstimate(
        card=gpu.name,
        card_bytes=gpu.memory_bytes,
        memory_bytes=Span.exactly(found["memory_bytes"]["reserved"]),
        fits=found["fits"],
        micro_batch=found["micro_batch"],
        trained_tokens=float(steps * tables.train.batch_size * found["usual_tokens"]),
        parts=() if problem else tuple(parts),
        problem=problem,
    )


def evicted_per_h(offer: Offer | None) -> Span:
    """Return how many machines of an offer are evicted in an hour, by the vendor's band."""
    band = offer.eviction_band if offer is not None else ""
    found = re.fullmatch(r"(\d+)(?:-(\d+)|\+)", band)
    if found is None:
        return Span(low=0.0, likely=0.05, high=0.25)
    low = int(found[1]) / 100
    high = int(found[2]) / 100 if found[2] else 0.25
    return Span(low=low, likely=(low + high) / 2, high=high)
